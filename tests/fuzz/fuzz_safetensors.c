/* fuzz_safetensors.c - libFuzzer: any bytes as a safetensors file; every tensor that the reader
 * lists is read. */
#include "fedlora/io.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void fuzz_tensor(const fl_st *st, int i)
{
    const fl_st_entry *e = &st->entry[i];
    size_t count = 1;
    fl_real *x;

    for (int k = 0; k < e->ndims; k++) {
        count *= (size_t)e->dims[k]; /* checked by the reader: it fits the file */
    }
    if (e->end > st->nbytes - st->data || fl_st_find(st, e->name) < 0) {
        abort();
    }
    x = fl_alloc("fuzzed tensor", count, sizeof *x);
    (void)fl_st_read(st, i, count, x);
    (void)fl_st_read(st, i, count + 1, x); /* must refuse before it writes */
    fl_free(x);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    size_t before = fl_memory_now();
    fl_st st;
    fl_err err = fl_st_parse(data, n, "fuzz", &st);

    if ((err == FL_OK) != (*fl_error_text() == '\0')) {
        abort(); /* an error without a sentence, or a sentence without an error */
    }
    for (int i = 0; err == FL_OK && i < st.n; i++) {
        fuzz_tensor(&st, i);
    }
    fl_st_close(&st);
    fl_error_clear();
    if (fl_memory_now() != before) {
        abort(); /* a leak that the allocator's count shows at once */
    }
    return 0;
}
