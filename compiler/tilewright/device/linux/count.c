/* A plugin for QEMU that counts the instructions a program executes.
 *
 * Whenever the program does what `mark` in driver.c does, the count so far is written to the file
 * `out=PATH` as one line. The declarations are those of QEMU's interface for plugins that we use.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#ifndef PLUGIN_VERSION
#define PLUGIN_VERSION 1
#endif

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
enum { NO_REGISTERS = 0, MARK = 0x7457 };

typedef void (*block_translated)(plugin_id id, struct qemu_plugin_tb *block);
typedef void (*block_executed)(unsigned cpu, void *data);
typedef void (*system_call)(plugin_id id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2,
                            uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7,
                            uint64_t a8);

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, block_translated call);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, block_executed call, int flags,
                                          void *data);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id id, system_call call);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);

#define EXPORT __attribute__((visibility("default")))

EXPORT int qemu_plugin_version = PLUGIN_VERSION;

static uint64_t executed;
static FILE *out;

static void on_executed(unsigned cpu, void *data) {
  (void)cpu;
  executed += (uint64_t)(uintptr_t)data;
}

static void on_translated(plugin_id id, struct qemu_plugin_tb *block) {
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_cb(block, on_executed, NO_REGISTERS,
                                       (void *)(uintptr_t)qemu_plugin_tb_n_insns(block));
}

static void on_system_call(plugin_id id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2,
                           uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7,
                           uint64_t a8) {
  (void)id, (void)cpu, (void)number, (void)a2, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
  if ((int32_t)a1 == -1 && a3 == MARK) {
    fprintf(out, "%llu\n", (unsigned long long)executed);
    fflush(out);
  }
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv) {
  (void)info;
  if (argc != 1 || strncmp(argv[0], "out=", 4) != 0 || !(out = fopen(argv[0] + 4, "w")))
    return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translated);
  qemu_plugin_register_vcpu_syscall_cb(id, on_system_call);
  return 0;
}
