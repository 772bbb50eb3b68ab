/* verify.c - is a file whole: every hash of a checkpoint, lengths and ranges of a data set, layout
 * and finite numbers of safetensors. */
#include "inspect_internal.h"

static fl_err verify_checkpoint(const char *path, fl_text *t)
{
    ck_file c;
    char bytes[32];

    FL_TRY(ck_open(path, &c));
    fl_err err = ck_verify(&c);

    if (err == FL_OK) {
        fl_text_add(t, "%s: whole: %d arrays, %lld clients, %s, every hash agrees\nstate %016llx\n",
            path, c.s.narrays, (long long)c.nids, fl_bytes_text((double)c.bytes, bytes),
            (unsigned long long)c.s.state);
    }
    ck_close(&c);
    return err;
}

static fl_err verify_tensors(const fl_st *st, int *nfloat)
{
    for (int i = 0; i < st->n; i++) {
        if (!st_is_float(&st->entry[i])) {
            continue;
        }
        size_t n = st_count(&st->entry[i]);
        fl_real *x = fl_alloc("tensor", n, sizeof *x);
        fl_err err = fl_st_read(st, i, n, x); /* refuses NaN and Inf */

        fl_free(x);
        FL_TRY(err);
        ++*nfloat;
    }
    return FL_OK;
}

static fl_err verify_safetensors(const char *path, fl_text *t)
{
    fl_st st;
    int nfloat = 0;

    FL_TRY(fl_st_open(path, &st));
    fl_err err = verify_tensors(&st, &nfloat);

    if (err == FL_OK) {
        fl_text_add(t, "%s: whole: %d tensors, the numbers of %d are finite\n", path, st.n, nfloat);
    }
    fl_st_close(&st);
    return err;
}

fl_err fl_verify(const char *path, fl_text *t)
{
    return by_file_kind(
        path, &(kind_functions){verify_checkpoint, dataset_verify, verify_safetensors}, t);
}
