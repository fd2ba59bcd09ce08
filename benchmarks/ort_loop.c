/* Times one model in onnxruntime's C API, in turns with benchmarks/harness.py, of which it shares no line.

       cc -O2 ort_loop.c -ldl -o ort_loop
       ./ort_loop libonnxruntime.so model.onnx tokens calls

   prints the median of `calls` runs of one example (int64 input "input_ids", output "logits") in milliseconds.

   The wheel has the library without its header. OrtApi is a table of functions whose order no release may change: the
   places used here are those of the first version of the API. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { GET_MESSAGE = 2, CREATE_ENV = 3, CREATE_SESSION = 7, RUN = 9, CREATE_OPTIONS = 10, INTRA_THREADS = 24,
       INTER_THREADS = 25, TENSOR_WITH_DATA = 49, CPU_MEMORY = 69, RELEASE_VALUE = 96 };
enum { API_VERSION = 1, WARNING = 2, INT64 = 7, ARENA = 1, DEFAULT_MEMORY = 0, WARM_UP = 200 };

typedef struct { void **(*get_api)(uint32_t); const char *(*version)(void); } Base;
static void **api;

static void must(void *status) {
    if (status == NULL) return;
    fprintf(stderr, "%s\n", ((const char *(*)(void *))api[GET_MESSAGE])(status));
    exit(1);
}

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * t.tv_sec + 1e-6 * t.tv_nsec;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int count, char **given) {
    if (count != 5) return fprintf(stderr, "usage: ort_loop LIBRARY MODEL TOKENS CALLS\n"), 2;
    int tokens = atoi(given[3]), calls = atoi(given[4]);
    void *library = dlopen(given[1], RTLD_NOW);
    if (library == NULL) return fprintf(stderr, "%s\n", dlerror()), 1;
    const Base *base = ((const Base *(*)(void))dlsym(library, "OrtGetApiBase"))();
    api = base->get_api(API_VERSION);

    void *env, *options, *session, *memory, *input;
    must(((void *(*)(int, const char *, void **))api[CREATE_ENV])(WARNING, "loop", &env));
    must(((void *(*)(void **))api[CREATE_OPTIONS])(&options));
    must(((void *(*)(void *, int))api[INTRA_THREADS])(options, 1));
    must(((void *(*)(void *, int))api[INTER_THREADS])(options, 1));
    must(((void *(*)(void *, const char *, void *, void **))api[CREATE_SESSION])(env, given[2], options, &session));
    must(((void *(*)(int, int, void **))api[CPU_MEMORY])(ARENA, DEFAULT_MEMORY, &memory));

    int64_t *ids = calloc(tokens, sizeof *ids), shape[] = {1, tokens};
    for (int i = 0; i < tokens; i++) ids[i] = 1 + i;
    must(((void *(*)(void *, void *, size_t, const int64_t *, size_t, int, void **))api[TENSOR_WITH_DATA])(
        memory, ids, tokens * sizeof *ids, shape, 2, INT64, &input));

    const char *inputs[] = {"input_ids"}, *outputs[] = {"logits"};
    double *ms = calloc(calls, sizeof *ms);
    for (int i = -WARM_UP; i < calls; i++) {
        void *logits = NULL;
        double start = now_ms();
        must(((void *(*)(void *, void *, const char *const *, void *const *, size_t, const char *const *, size_t,
                         void **))api[RUN])(session, NULL, inputs, &input, 1, outputs, 1, &logits));
        double took = now_ms() - start;
        if (i >= 0) ms[i] = took;
        ((void (*)(void *))api[RELEASE_VALUE])(logits);
    }
    qsort(ms, calls, sizeof *ms, by_size);
    printf("%.6f\n", ms[calls / 2]);
    return 0;
}
