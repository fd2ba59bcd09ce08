/* A QEMU TCG plugin: counts guest instructions, and tells the count whenever the guest asks.
 *
 * The guest asks by getpriority(99, n), a call that the kernel refuses and nobody else makes; stderr then gets
 * "mark n count". The declarations are those of version 1 of QEMU's documented plugin interface (QEMU 4.2 to 8.2).
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>

enum { ADD_U64 = 0, MARK = 99, GETPRIORITY_X86_64 = 140, GETPRIORITY_AARCH64 = 141 }; /* the other's is setpriority */
struct tb;
typedef void on_block(uint64_t id, struct tb *block);
typedef void on_syscall(uint64_t id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                        uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8);
extern size_t qemu_plugin_tb_n_insns(const struct tb *block);
extern void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, on_block *callback);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct tb *block, int operation, void *counter, uint64_t operand);
extern void qemu_plugin_register_vcpu_syscall_cb(uint64_t id, on_syscall *callback);

int qemu_plugin_version = 1;
static uint64_t count;

static void block_translated(uint64_t id, struct tb *block) {
    qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &count, qemu_plugin_tb_n_insns(block));
}

static void system_called(uint64_t id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                          uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
    if ((number == GETPRIORITY_AARCH64 || number == GETPRIORITY_X86_64) && a1 == MARK)
        fprintf(stderr, "mark %" PRIu64 " %" PRIu64 "\n", a2, count);
}

int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv) {
    qemu_plugin_register_vcpu_tb_trans_cb(id, block_translated);
    qemu_plugin_register_vcpu_syscall_cb(id, system_called);
    return 0;
}
