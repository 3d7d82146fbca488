// SPDX-License-Identifier: MIT
// An engine in C that records itself: two calls of a prompt, three stages. docs/record-tensors.md shows the part that
// records.
//
//   cc -std=c99 -I ~/moe-diag/include engine.c -o engine && ./engine dump
#include <moe_diag_dump.h>

enum { LAYERS = 2, HIDDEN = 8, USED = 3, VOCAB = 11 };
static uint16_t moe_ffn_out[4 * HIDDEN];  // bf16
static int32_t ids[4 * USED];
static float logits[VOCAB];

// Stands for a layer of your engine.
static void run_layer(int layer, int64_t rows) {
  for (int64_t i = 0; i < rows * HIDDEN; ++i) moe_ffn_out[i] = (uint16_t)(0x3f80 + 16 * layer + i);
  for (int64_t i = 0; i < rows * USED; ++i) ids[i] = (int32_t)(i % USED + layer);
}

static int run(moe_diag_dump* d, int64_t first, int64_t rows, const int32_t* tokens) {
  moe_diag_dump_begin(d, "0", first, rows, tokens, "\"mode\": \"eager\"");
  for (int layer = 0; layer < LAYERS; ++layer) {
    run_layer(layer, rows);
    moe_diag_dump_rows(d, "moe_router_indices", layer, MOE_DIAG_I32, ids, rows, USED, 0);
    moe_diag_dump_rows(d, "moe_ffn_out", layer, MOE_DIAG_BF16, moe_ffn_out, rows, HIDDEN, 0);
  }
  for (int i = 0; i < VOCAB; ++i) logits[i] = (float)(tokens[rows - 1] + i);
  moe_diag_dump_rows(d, "lm_head", -1, MOE_DIAG_F32, logits, 1, VOCAB, 0);  // of the last row only
  return moe_diag_dump_end(d);
}

int main(int argc, char** argv) {
  const int32_t prompt[] = {5, 6, 7}, next[] = {8};
  static moe_diag_dump d;
  moe_diag_dump_open(&d, argc > 1 ? argv[1] : "dump", "my port 0.3");
  run(&d, 0, 3, prompt);
  run(&d, 3, 1, next);
  if (moe_diag_dump_close(&d)) fprintf(stderr, "%s\n", d.error);
  return d.failed;
}
