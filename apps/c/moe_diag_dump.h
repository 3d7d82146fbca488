// SPDX-License-Identifier: MIT
// Records the tensors of an engine in C or C++ as a dump for `moe-diag judge`: docs/record-tensors.md. No library is
// needed.
//   static moe_diag_dump d;
//   moe_diag_dump_open(&d, "dump", "my port 0.3");                                    // then filters: d.last = 1;
//   moe_diag_dump_begin(&d, "0", position, rows, tokens, "\"mode\": \"eager\"");      // one forward pass
//   moe_diag_dump_rows(&d, "moe_ffn_out", layer, MOE_DIAG_BF16, x, rows, hidden, 0);  // layer -1: of the whole model
//   moe_diag_dump_end(&d);
//   moe_diag_dump_close(&d);  // without it the dump counts as cut
// Functions return 0, or 1 with the reason in d.error; after an error all fail. One thread at a time uses a
// moe_diag_dump.
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { MOE_DIAG_F32, MOE_DIAG_F16, MOE_DIAG_BF16, MOE_DIAG_I32, MOE_DIAG_STAGES = 64, MOE_DIAG_LAYERS = 1024 };
typedef struct {
  char name[48], files[MOE_DIAG_LAYERS + 1];  // by layer + 1: 1, there is a file; 2, and it has rows of this call
  int type;
  int64_t width, height, rows, now;  // shape of a row; rows in the files; rows of this call, or -1
} moe_diag_stage;
typedef struct {
  const char* stages;                  // filter: "moe_ffn_out,lm_head"; null: all
  int first_layer, end_layer;          // filter: from the first up to the end, which is excluded; 0: all
  int64_t first_call, end_call, last;  // filter: likewise; the last rows of each call, 0: all
  const char *request, *facts;
  const int32_t* tokens;
  int64_t first, count, calls, kept;
  int in_call, failed, stage_count;
  char path[512], engine[128], file[640], error[1024];
  moe_diag_stage stage[MOE_DIAG_STAGES];
} moe_diag_dump;

static inline int moe_diag_dump_fail(moe_diag_dump* d, const char* what, int layer, const char* text) {
  if (!d->failed)
    snprintf(d->error, 1024, "%s: call %lld, layer %d, %s: %s", d->path, (long long)d->calls, layer, what, text);
  return d->failed = 1;
}
static inline FILE* moe_diag_dump_file(moe_diag_dump* d, const char* name, int layer, const char* end,
                                       const char* mode) {
  int n = snprintf(d->file, 640, "%s", d->path);
  if (layer >= 0) n += snprintf(d->file + n, (size_t)(640 - n), "/layer_%02d", layer);
  if (layer >= 0) mkdir(d->file, 0777);
  snprintf(d->file + n, (size_t)(640 - n), "/%s%s", name, end);
  return fopen(d->file, mode);
}
// Closes the last file, and takes `end` off its name. Whether that failed, or something `before`.
static inline int moe_diag_dump_done(moe_diag_dump* d, FILE* f, const char* end, int before) {
  char to[640] = "";
  memcpy(to, d->file, strlen(d->file) - strlen(end));
  return !f || ferror(f) + fclose(f) || before || (*end && rename(d->file, to));
}
static inline int moe_diag_dump_header(const moe_diag_stage* s, int64_t rows,
                                       FILE* f) {  // 128 bytes, whatever the rows
  static const char* const types[] = {"<f4", "<f2", "|V2", "<i4"};
  char text[118], second[24] = "";
  if (s->height) snprintf(second, sizeof second, "%lld, ", (long long)s->height);
  snprintf(text, sizeof text, "{'descr': '%s', 'fortran_order': False, 'shape': (%lld, %lld, %s), }", types[s->type],
           (long long)rows, (long long)s->width, second);
  return !f || fwrite("\x93NUMPY\1\0\x76\0", 1, 10, f) != 10 || fprintf(f, "%-117s\n", text) != 118;
}
static inline int moe_diag_dump_info(moe_diag_dump* d, const char* closed, int64_t calls) {
  FILE* f = moe_diag_dump_file(d, "dump.json", -1, ".new", "w");
  if (f) fprintf(f, "{\"format\": \"moe-diag dump\", \"version\": 1, \"engine\": \"%s\", ", d->engine);
  if (f) fprintf(f, "\"closed\": %s, \"calls\": %lld}\n", closed, (long long)calls);
  return moe_diag_dump_done(d, f, ".new", 0) ? moe_diag_dump_fail(d, "dump.json", -1, "cannot be written") : 0;
}

static inline int moe_diag_dump_open(moe_diag_dump* d, const char* path, const char* engine) {
  memset(d, 0, sizeof *d);
  if (snprintf(d->path, 512, "%s", path) >= 512 || snprintf(d->engine, 128, "%s", engine) >= 128 ||
      strpbrk(engine, "\"\\\n"))
    return moe_diag_dump_fail(d, engine, -1, "path or engine: expected fewer characters, and no quotes");
  if (mkdir(path, 0777))
    return moe_diag_dump_fail(d, "folder", -1, "cannot be made: expected a new one in one that is there");
  return moe_diag_dump_info(d, "false", 0);
}
// One forward pass. `first`: position of the first row, -1: behind the last call of the request. `tokens` and `facts`,
// more keys of the call in JSON, may be null. All pointers must live to moe_diag_dump_end.
static inline int moe_diag_dump_begin(moe_diag_dump* d, const char* request, int64_t first, int64_t rows,
                                      const int32_t* tokens, const char* facts) {
  if (d->failed || d->in_call || rows < 1 || strpbrk(request, "\"\\\n"))
    return moe_diag_dump_fail(d, "begin", -1,
                              "expected the end of the call before, rows, and a request without quotes");
  d->request = request, d->first = first, d->count = rows, d->tokens = tokens, d->facts = facts, d->in_call = 1;
  for (int i = 0; i < d->stage_count; ++i) d->stage[i].now = -1;
  return 0;
}
static inline int moe_diag_dump_wants_call(const moe_diag_dump* d) {
  return d->calls >= d->first_call && (!d->end_call || d->calls < d->end_call);
}
// Whether the filters keep a stage: others need not be copied off a device.
static inline int moe_diag_dump_wants(const moe_diag_dump* d, const char* stage, int layer) {
  const char* at = d->stages;
  const size_t n = strlen(stage);
  while (at && (strncmp(at, stage, n) || (at[n] && at[n] != ','))) at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL;
  return moe_diag_dump_wants_call(d) && (at || !d->stages) &&
         (layer < 0 || (layer >= d->first_layer && (!d->end_layer || layer < d->end_layer)));
}
// `rows`: all of the call, or fewer, which are its last ones. A stage that comes later only is there with 0 in the
// first call. `height`: the second size of a row, [width, height]; 0: it has one.
static inline int moe_diag_dump_rows(moe_diag_dump* d, const char* stage, int layer, int type, const void* values,
                                     int64_t rows, int64_t width, int64_t height) {
  moe_diag_stage* s = d->stage;
  const int64_t keep = d->last && d->last < rows ? d->last : rows,
                size = (type % 3 ? 2 : 4) * width * (height ? height : 1);
  if (d->failed || !d->in_call) return moe_diag_dump_fail(d, stage, layer, "expected moe_diag_dump_begin before");
  if (!moe_diag_dump_wants(d, stage, layer)) return 0;
  while (s < d->stage + d->stage_count && strcmp(s->name, stage)) ++s;
  if (layer < -1 || layer >= MOE_DIAG_LAYERS || s == d->stage + MOE_DIAG_STAGES || strlen(stage) >= sizeof s->name ||
      rows < 0 || rows > d->count || size <= 0 || type < MOE_DIAG_F32 || type > MOE_DIAG_I32)
    return moe_diag_dump_fail(d, stage, layer,
                              "expected a layer from -1 on, up to the rows of the call, a type and a width");
  if (s == d->stage + d->stage_count) {
    s->type = type, s->width = width, s->height = height, s->now = -1, ++d->stage_count;
    memcpy(s->name, stage, strlen(stage));
  }
  char* has = &s->files[layer + 1];
  if (s->type != type || s->width != width || s->height != height || *has == 2 || (s->now >= 0 && s->now != keep) ||
      (d->kept && !*has))
    return moe_diag_dump_fail(d, stage, layer,
                              "expected type and shape as before, once a call, from the first call on, "
                              "and as many rows in each layer");
  FILE* f = moe_diag_dump_file(d, stage, layer, ".npy.part", *has ? "ab" : "wb");
  int bad = !f || (!*has && moe_diag_dump_header(s, 0, f));
  if (!bad && keep) bad = fwrite((const char*)values + (rows - keep) * size, (size_t)(keep * size), 1, f) != 1;
  *has = 2, s->now = keep;
  return moe_diag_dump_done(d, f, "", bad) ? moe_diag_dump_fail(d, stage, layer, "cannot be written") : 0;
}
static inline int moe_diag_dump_end(moe_diag_dump* d) {
  const int keep = moe_diag_dump_wants_call(d);
  for (moe_diag_stage* s = d->stage; keep && s < d->stage + d->stage_count; ++s) {
    for (int l = 0; l <= MOE_DIAG_LAYERS; s->files[l] = s->files[l] > 0, ++l)
      if (s->files[l] == 1 && s->now > 0) moe_diag_dump_fail(d, s->name, l - 1, "is missing: calls before had it");
    s->rows += s->now = s->now < 0 ? 0 : s->now;
  }
  if (d->failed || !d->in_call) return moe_diag_dump_fail(d, "end", -1, "expected moe_diag_dump_begin before");
  FILE* f = moe_diag_dump_file(d, "calls.jsonl", -1, "", "a");
  if (!f) return moe_diag_dump_fail(d, "calls.jsonl", -1, "cannot be written");
  fprintf(f, "{\"request\": \"%s\", \"rows\": %lld", d->request, (long long)d->count);
  if (d->first >= 0) fprintf(f, ", \"first\": %lld", (long long)d->first);
  for (int64_t i = 0; d->tokens && i < d->count; ++i)
    fprintf(f, "%s%ld", i ? ", " : ", \"tokens\": [", (long)d->tokens[i]);
  fprintf(f, "%s%s%s, \"recorded\": ", d->tokens ? "]" : "", d->facts ? ", " : "", d->facts ? d->facts : "");
  for (int i = 0; keep && i < d->stage_count; ++i)
    fprintf(f, "%s\"%s\": %lld", i ? ", " : "{", d->stage[i].name, (long long)d->stage[i].now);
  fprintf(f, keep && d->stage_count ? "}}\n" : "0}\n");
  d->kept += keep, ++d->calls, d->in_call = 0;
  return moe_diag_dump_done(d, f, "", 0) ? moe_diag_dump_fail(d, "calls.jsonl", -1, "cannot be written") : 0;
}
static inline int moe_diag_dump_close(moe_diag_dump* d) {
  if (d->failed || d->in_call) return moe_diag_dump_fail(d, "close", -1, "expected the end of the call before");
  for (moe_diag_stage* s = d->stage; s < d->stage + d->stage_count; ++s)
    for (int layer = -1; layer < MOE_DIAG_LAYERS; ++layer) {
      if (!s->files[layer + 1]) continue;
      FILE* f = moe_diag_dump_file(d, s->name, layer, ".npy.part", "r+b");
      if (moe_diag_dump_done(d, f, ".part", moe_diag_dump_header(s, s->rows, f)))
        return moe_diag_dump_fail(d, s->name, layer, "cannot be completed");
    }
  return moe_diag_dump_info(d, "true", d->calls);
}
