/* Runs a compiled model once on files of the host and counts its clock ticks.
 *
 * Reads inputs.bin (all inputs, one after the other). Writes results.bin: a `report`, the ticks of every
 * step, all outputs. The model runs twice: as a whole, then step by step; both must agree to the bit.
 * If the host has made an empty snapshots.bin, the arena and the outputs after every step go there.
 */
#include "runner.h"

typedef struct {
  uint32_t magic, status, stack_bytes, steps;
  uint64_t loop_ticks;  /* of LOOP_INSTRUCTIONS */
  uint64_t empty_ticks; /* of calling a step that does nothing, in total over EMPTY_CALLS */
  uint64_t run_ticks;
} report;

enum { MAGIC = 0x54574252, LOOP_INSTRUCTIONS = 2000000, EMPTY_CALLS = 1000 };
enum { OK, MISALIGNED, UNREPEATABLE };

static uint64_t step_ticks[MODEL_STEPS];
static const void *input_at[MODEL_INPUTS + 1];
static void *output_at[MODEL_OUTPUTS + 1];

/* Nothing may depend on what memory held before: floats become NaN, integers -1. */
static void poison(uint8_t *p, uint32_t bytes) {
  while (bytes--)
    *p++ = 0xFF;
}

static uint64_t known_loop(void) {
  uint32_t n = LOOP_INSTRUCTIONS / 2;
  uint64_t start = board_ticks();
  __asm volatile("1: subs %0, #1\n\tbne 1b" : "+l"(n) : : "cc");
  return board_ticks() - start;
}

static void nothing(void *context, uint32_t begin, uint32_t end) {
  (void)context, (void)begin, (void)end;
}

static uint64_t timed(model_step step, void *context, uint32_t count) {
  uint64_t start = board_ticks();
  step(context, 0, count);
  return board_ticks() - start;
}

static uint64_t empty_calls(void) {
  volatile model_step step = nothing;
  uint64_t total = 0;
  for (int i = 0; i < EMPTY_CALLS; ++i)
    total += timed(step, 0, 0);
  return total;
}

static uint32_t checksum(const uint8_t *p, uint32_t bytes) {
  uint32_t sum = 1;
  while (bytes--)
    sum = sum * 31u + *p++;
  return sum;
}

static void run_steps(void) {
  const void *context[4] = {input_at, output_at, model_arena, model_weights};
  int snapshots = board_open("snapshots.bin", 3);
  for (int i = 0; i < MODEL_STEPS; ++i) {
    step_ticks[i] = timed(model_steps[i].call, context, model_steps[i].count);
    if (snapshots >= 0) {
      board_write(snapshots, model_arena, MODEL_ARENA_BYTES);
      board_write(snapshots, model_outputs, MODEL_OUTPUT_BYTES);
    }
  }
  if (snapshots >= 0)
    board_close(snapshots);
}

static void write_results(const report *r) {
  int file = board_open("results.bin", 5);
  if (file < 0)
    board_exit(3);
  uint32_t left = board_write(file, r, sizeof *r);
  left += board_write(file, step_ticks, (uint32_t)sizeof(uint64_t) * MODEL_STEPS);
  for (int i = 0; i < MODEL_OUTPUTS; ++i)
    left += board_write(file, output_at[i], model_output_tensors[i].bytes);
  board_close(file);
  if (left)
    board_exit(4);
}

int main(void) {
  report r = {.magic = MAGIC, .status = OK, .steps = MODEL_STEPS};
  for (int i = 0; i < MODEL_OUTPUTS; ++i)
    output_at[i] = model_outputs + model_output_tensors[i].offset;
  int file = board_open("inputs.bin", 1);
  if (file < 0)
    return 1;
  for (int i = 0; i < MODEL_INPUTS; ++i) {
    input_at[i] = model_inputs + model_input_tensors[i].offset;
    if (board_read(file, model_inputs + model_input_tensors[i].offset, model_input_tensors[i].bytes))
      return 2;
  }
  board_close(file);
  r.loop_ticks = known_loop();
  r.empty_ticks = empty_calls();

  poison(model_arena, MODEL_ARENA_BYTES);
  poison(model_outputs, MODEL_OUTPUT_BYTES);
  (void)board_stack_used();
  uint64_t start = board_ticks();
  r.status = (uint32_t)model_run(input_at, output_at, model_arena); /* 1 is MISALIGNED */
  r.run_ticks = board_ticks() - start;
  r.stack_bytes = board_stack_used();
  uint32_t whole = checksum(model_outputs, MODEL_OUTPUT_BYTES);

  poison(model_arena, MODEL_ARENA_BYTES);
  poison(model_outputs, MODEL_OUTPUT_BYTES);
  run_steps();
  if (r.status == OK && checksum(model_outputs, MODEL_OUTPUT_BYTES) != whole)
    r.status = UNREPEATABLE;
  write_results(&r);
  return 0;
}
