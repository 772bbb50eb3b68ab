/* peft_set_case.c - the C side of check_peft_set.py: adapters in, one adapter out.
 *   peft_set_case stack OUT DIR...                   the mean of the changes: A = all p_k A_k one
 * below the other, B = all s_k B_k side by side, r = sum of r_k, s = 1; extras are averaged
 *   peft_set_case copy F32|F16|BF16 0|1 0|4|5 OUT DIR  as it is; with rsLoRA; names of transformers
 * 4 or 5 Built by: make B=build && mpicc -std=c11 -D_GNU_SOURCE -Iinclude
 * tests/interop/peft_set_case.c build/libfedlora.a $(jobs/install/flags.sh libs) -lm -o
 * build/peft_set_case */
#include "fedlora/io.h"
#include <stdlib.h>
#include <string.h>

static fl_err stack_site(const fl_peft_set *s, int j, int r, fl_peft_out *out)
{
    size_t m = (size_t)s->site[j].site.m, n = (size_t)s->site[j].site.n;
    fl_real *a = fl_alloc("A", (size_t)r * n, sizeof *a),
            *b = fl_alloc("B", m * (size_t)r, sizeof *b);
    fl_real *part = fl_alloc("B", m * (size_t)r, sizeof *part);
    fl_err err = FL_OK;

    for (int f = 0, at = 0; f < s->nfolders && err == FL_OK; f++) {
        double scale;
        int k = fl_peft_set_r(s, f, j, &scale);

        if (k == 0) {
            continue;
        }
        err = fl_peft_set_read(s, f, j, a + (size_t)at * n, part);
        for (size_t i = 0; i < (size_t)k * n; i++) {
            a[(size_t)at * n + i] /= (fl_real)s->nfolders;
        }
        for (size_t i = 0; i < m; i++) {
            for (int l = 0; l < k; l++) {
                b[i * (size_t)r + (size_t)(at + l)] =
                    (fl_real)(scale * (double)part[i * (size_t)k + (size_t)l]);
            }
        }
        at += k;
    }
    if (err == FL_OK) {
        err = fl_peft_out_site(out, j, a, b);
    }
    fl_free(a);
    fl_free(b);
    fl_free(part);
    return err;
}

static fl_err mean_extra(const fl_peft_set *s, int j, fl_peft_out *out)
{
    fl_real *x = fl_alloc("x", s->extra[j].n, sizeof *x),
            *sum = fl_alloc("x", s->extra[j].n, sizeof *x);
    fl_err err = FL_OK;

    for (int f = 0; f < s->nfolders && err == FL_OK; f++) {
        err = fl_peft_set_read_extra(s, f, j, x);
        for (size_t i = 0; i < s->extra[j].n; i++) {
            sum[i] += x[i] / (fl_real)s->nfolders;
        }
    }
    if (err == FL_OK) {
        err = fl_peft_out_extra(out, j, sum);
    }
    fl_free(x);
    fl_free(sum);
    return err;
}

static fl_err copy_site(const fl_peft_set *s, int j, int r, fl_peft_out *out)
{
    const fl_site *site = &s->site[j].site;
    fl_real *a = fl_alloc("A", (size_t)r * (size_t)site->n, sizeof *a);
    fl_real *b = fl_alloc("B", (size_t)r * (size_t)site->m, sizeof *b);
    fl_err err = fl_peft_set_read(s, 0, j, a, b);

    if (err == FL_OK) {
        err = fl_peft_out_site(out, j, a, b);
    }
    fl_free(a);
    fl_free(b);
    return err;
}

static fl_err write_all(const fl_peft_set *s, const char *dir, fl_peft_how *how, bool stack)
{
    int *r = fl_alloc("r", (size_t)s->nsites, sizeof *r);
    double *scale = fl_alloc("s", (size_t)s->nsites, sizeof *scale), one, rounding = 0;
    fl_peft_out *out = NULL;
    fl_err err;

    for (int j = 0; j < s->nsites; j++) {
        scale[j] = 1;
        for (int f = 0; f < s->nfolders; f++) {
            r[j] += fl_peft_set_r(s, f, j, &one);
            scale[j] = stack ? 1 : one;
        }
    }
    how->r = r;
    how->scale = scale;
    err = fl_peft_out_begin(s, dir, how, &out);
    for (int j = 0; j < s->nsites && err == FL_OK; j++) {
        err = (stack ? stack_site : copy_site)(s, j, r[j], out);
    }
    for (int j = 0; j < s->nextras && err == FL_OK; j++) {
        err = mean_extra(s, j, out);
    }
    if (err == FL_OK) {
        err = fl_peft_out_commit(&out, &rounding);
        printf("%d sites, %d extras, rounding %.2e\n", s->nsites, s->nextras, rounding);
    }
    fl_peft_out_drop(&out);
    fl_free(r);
    fl_free(scale);
    return err;
}

int main(int argc, char **argv)
{
    bool stack = argc > 3 && strcmp(argv[1], "stack") == 0;
    int first = stack ? 3 : 6;
    fl_peft_how how = {0};
    fl_peft_set *s;
    fl_err err;

    if (argc <= first || (!stack && argc != 7)) {
        fprintf(stderr, "usage: peft_set_case stack OUT DIR... | copy DTYPE 0|1 0|4|5 OUT DIR\n");
        return 2;
    }
    if (!stack) {
        how.dtype = strcmp(argv[2], "F16") == 0    ? FL_PEFT_F16
                    : strcmp(argv[2], "BF16") == 0 ? FL_PEFT_BF16
                                                   : FL_PEFT_F32;
        how.rslora = argv[3][0] == '1';
        how.names = atoi(argv[4]);
    }
    err = fl_peft_set_open(argc - first, (const char *const *)argv + first, NULL, &s);
    if (err == FL_OK) {
        if (s->notes.s) {
            fputs(s->notes.s, stdout);
        }
        err = write_all(s, argv[first - 1], &how, stack);
    }
    fl_peft_set_close(&s);
    if (err != FL_OK) {
        fprintf(stderr, "%s\n", fl_error_text());
    }
    return fl_exit_code(err);
}
