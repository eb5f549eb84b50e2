/* What the emulated board's own code (start.c) offers to programs on it. Freestanding C11. */
#ifndef TILEWRIGHT_BOARD_H
#define TILEWRIGHT_BOARD_H

#include <stdint.h>

/* Clock ticks since reset. Under `qemu -icount shift=0` a tick is a fixed number of instructions. */
uint64_t board_ticks(void);

/* Ends the emulation; the host's QEMU exits with `code` (0 to 255). */
_Noreturn void board_exit(int code);

/* Opens a host file: mode 1 "rb", 3 "r+b", 5 "wb". Returns a handle, or -1. */
int board_open(const char *path, int mode);

/* Reads or writes all of `bytes`; returns how many bytes were left undone. */
uint32_t board_read(int handle, void *to, uint32_t bytes);
uint32_t board_write(int handle, const void *from, uint32_t bytes);
void board_close(int handle);

/* Most bytes of stack used since the last call, and marks all that is free as unused. */
uint32_t board_stack_used(void);

int main(void);

#endif
