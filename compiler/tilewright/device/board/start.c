/* Start-up code of the emulated boards: vector table, memory, floating point, clock, host files.
 *
 * Armv7-M and Armv8-M with semihosting (Arm, "Semihosting for AArch32 and AArch64", 2.0). Nothing of a C
 * library is needed; the functions a compiler may call on its own are at the end.
 */
#include "board.h"

#include <stddef.h>

extern uint32_t board_stack_top[], board_stack_low[];
extern uint32_t board_data[], board_data_end[], board_data_image[], board_bss[], board_bss_end[];

#define SYSTICK_CONTROL (*(volatile uint32_t *)0xE000E010u)
#define SYSTICK_RELOAD (*(volatile uint32_t *)0xE000E014u)
#define SYSTICK_VALUE (*(volatile uint32_t *)0xE000E018u)
#define COPROCESSORS (*(volatile uint32_t *)0xE000ED88u)

enum { OPEN = 0x01, CLOSE = 0x02, WRITE = 0x05, READ = 0x06, EXIT_EXTENDED = 0x20 };
enum { STACK_MARK = 0x5AC4BEEF, TICKS_PER_TURN = 1 << 24, FAULT_CODE = 99 };

static volatile uint32_t turns;

static void reset(void);
static void fault(void) { board_exit(FAULT_CODE); }
static void turn(void) { turns = turns + 1; }

/* Stack pointer, reset, 13 exceptions that end the run, SysTick. */
typedef union {
  uint32_t *stack;
  void (*call)(void);
} vector;
extern const vector board_vectors[16];
__attribute__((section(".vectors"), used)) const vector board_vectors[16] = {
    {.stack = board_stack_top}, {.call = reset}, {.call = fault}, {.call = fault},
    {.call = fault},            {.call = fault}, {.call = fault}, {.call = fault},
    {.call = fault},            {.call = fault}, {.call = fault}, {.call = fault},
    {.call = fault},            {.call = fault}, {.call = fault}, {.call = turn},
};

static void reset(void) {
  COPROCESSORS |= 0xFu << 20; /* floating point, and Helium where there is one */
  __asm volatile("dsb\n\tisb");
  for (uint32_t *to = board_data, *from = board_data_image; to < board_data_end;)
    *to++ = *from++;
  for (uint32_t *to = board_bss; to < board_bss_end;)
    *to++ = 0;
  SYSTICK_RELOAD = TICKS_PER_TURN - 1;
  SYSTICK_VALUE = 0;
  SYSTICK_CONTROL = 7; /* count, interrupt, processor clock */
  (void)board_stack_used();
  board_exit(main());
}

uint64_t board_ticks(void) {
  uint32_t before, value;
  do {
    before = turns;
    value = SYSTICK_VALUE;
  } while (before != turns);
  return (uint64_t)before * TICKS_PER_TURN + (TICKS_PER_TURN - 1 - value);
}

uint32_t board_stack_used(void) {
  uint32_t *here = __builtin_frame_address(0);
  uint32_t *p = board_stack_low;
  while (p < here && *p == STACK_MARK)
    ++p;
  uint32_t used = (uint32_t)((char *)here - (char *)p);
  here -= 16; /* our own frame may reach this far */
  for (p = board_stack_low; p < here; ++p)
    *(volatile uint32_t *)p = STACK_MARK;
  return used;
}

/* ---- the host */

static int host(int operation, const void *argument) {
  register int r0 __asm("r0") = operation;
  register const void *r1 __asm("r1") = argument;
  __asm volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

void board_exit(int code) {
  const uint32_t block[2] = {0x20026, (uint32_t)code}; /* ADP_Stopped_ApplicationExit */
  for (;;)
    host(EXIT_EXTENDED, block);
}

int board_open(const char *path, int mode) {
  uint32_t length = 0;
  while (path[length])
    ++length;
  const uint32_t block[3] = {(uint32_t)path, (uint32_t)mode, length};
  return host(OPEN, block);
}

uint32_t board_read(int handle, void *to, uint32_t bytes) {
  const uint32_t block[3] = {(uint32_t)handle, (uint32_t)to, bytes};
  return bytes ? (uint32_t)host(READ, block) : 0;
}

uint32_t board_write(int handle, const void *from, uint32_t bytes) {
  const uint32_t block[3] = {(uint32_t)handle, (uint32_t)from, bytes};
  return bytes ? (uint32_t)host(WRITE, block) : 0;
}

void board_close(int handle) {
  const uint32_t block[1] = {(uint32_t)handle};
  host(CLOSE, block);
}

/* ---- what compilers call on their own */

void *memcpy(void *restrict to, const void *restrict from, size_t n);
void *memset(void *to, int value, size_t n);

void *memcpy(void *restrict to, const void *restrict from, size_t n) {
  unsigned char *t = to;
  const unsigned char *f = from;
  while (n--)
    *t++ = *f++;
  return to;
}

void *memset(void *to, int value, size_t n) {
  unsigned char *t = to;
  while (n--)
    *t++ = (unsigned char)value;
  return to;
}
