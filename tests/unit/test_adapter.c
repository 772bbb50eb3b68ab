/* Spaces, adapters and their algebra, against dense arithmetic and the identities that define them.
 */
#include "fedlora/adapter.h"
#include "fedlora/deck.h"
#include "harness.h"
#include <math.h>
#include <string.h>

enum { NSITES = 3 };
static const fl_site sites[NSITES] = {{"0.q", 0, 7, 5}, {"0.v", 0, 6, 5}, {"1.q", 1, 9, 4}};

static void fill(fl_adapter *ad, int id)
{
    for (size_t i = 0; i < ad->space->n; i++) {
        ad->v[i] = (fl_real)fl_rng_normal(11, FL_RNG_TEST, id, 0, i);
    }
}

/* s B A of one site by the definition, x m x n */
static void dense_update(const fl_adapter *ad, int j, double *x)
{
    fl_mat a = fl_at(ad, j, FL_A), b = fl_at(ad, j, FL_B);

    for (int i = 0; i < sites[j].m; i++) {
        for (int k = 0; k < sites[j].n; k++) {
            double sum = 0;

            for (int l = 0; l < a.rows; l++) {
                sum += (double)b.x[i * b.cols + l] * (double)a.x[l * a.cols + k];
            }
            x[i * sites[j].n + k] = ad->space->scale[j] * sum;
        }
    }
}

static void test_layout(void **state)
{
    const int r[NSITES] = {2, 0, 3};
    fl_spaces *reg = fl_spaces_create();
    const fl_space *s = fl_space_lora(reg, NSITES, sites, r, 8, false);

    (void)state;
    assert_true(fl_space_is_valid(s));
    assert_int_equal(s->nslots, 4);
    assert_int_equal(s->rmax, 3);
    assert_int_equal(s->n, 2 * 5 + 7 * 2 + 3 * 4 + 9 * 3);
    assert_string_equal(s->slot[0].name, "0.q.A");
    assert_string_equal(s->slot[3].name, "1.q.B");
    assert_int_equal(s->slot_of[2], -1);
    assert_int_equal(s->slot_of[5], 3);
    assert_true(s->scale[0] == 4.0 && s->scale[2] == 8.0 / 3);

    fl_adapter *ad = fl_adapter_create(s);
    assert_null(fl_at(ad, 1, FL_A).x);
    assert_ptr_equal(fl_at(ad, 2, FL_B).x, ad->v + 2 * 5 + 7 * 2 + 3 * 4);
    assert_null(fl_at(ad, 0, FL_DENSE).x);
    fl_adapter_destroy(&ad);
    assert_null(ad);
    fl_spaces_destroy(&reg);
    assert_null(reg);
}

static void test_invalid_spaces_are_seen(void **state)
{
    const int r[NSITES] = {2, 0, 3};
    fl_spaces *reg = fl_spaces_create();
    fl_space *s = (fl_space *)fl_space_lora(reg, NSITES, sites, r, 8, false);

    (void)state;
    s->slot[1].at++;
    assert_false(fl_space_is_valid(s));
    s->slot[1].at--;
    s->n++;
    assert_false(fl_space_is_valid(s));
    s->n--;
    s->r[2] = 2;
    assert_false(fl_space_is_valid(s));
    s->r[2] = 3;
    s->slot_of[2] = 0;
    assert_false(fl_space_is_valid(s));
    s->slot_of[2] = -1;
    assert_true(fl_space_is_valid(s));
    assert_false(fl_space_is_valid(NULL));
    fl_spaces_destroy(&reg);
}

static void test_interning(void **state)
{
    const int r[NSITES] = {2, 0, 3}, other_r[NSITES] = {2, 1, 3};
    fl_site renamed[NSITES];
    fl_spaces *reg = fl_spaces_create();
    const fl_space *s = fl_space_lora(reg, NSITES, sites, r, 8, false), *all[32];
    int n = 0;

    (void)state;
    memcpy(renamed, sites, sizeof sites);
    snprintf(renamed[0].name, sizeof renamed[0].name, "0.k");
    assert_ptr_equal(s, fl_space_lora(reg, NSITES, sites, r, 8, false));
    all[n++] = s;
    all[n++] = fl_space_lora(reg, NSITES, sites, r, 8, true);
    all[n++] = fl_space_lora(reg, NSITES, sites, r, 9, false);
    all[n++] = fl_space_lora(reg, NSITES, sites, r, 0, false);
    all[n++] = fl_space_lora(reg, NSITES, sites, other_r, 8, false);
    all[n++] = fl_space_lora(reg, NSITES, renamed, r, 8, false);
    all[n++] = fl_space_lora(reg, NSITES - 1, sites, r, 8, false);
    for (int i = 1; i < 20;
         i++) { /* more than the registry's first room: pointers must stay good */
        const int big[NSITES] = {i + 10, 0, 1};
        all[n++] = fl_space_lora(reg, NSITES, sites, big, 8, false);
    }
    for (int i = 0; i < n; i++) {
        assert_true(fl_space_is_valid(all[i]));
        for (int j = 0; j < i; j++) {
            assert_ptr_not_equal(all[i], all[j]);
            assert_true(all[i]->hash != all[j]->hash);
        }
    }
    assert_ptr_equal(s, fl_space_lora(reg, NSITES, sites, r, 8, false));
    fl_spaces_destroy(&reg);
}

static void test_scales(void **state)
{
    const int r[NSITES] = {4, 1, 16};
    fl_spaces *reg = fl_spaces_create();
    const fl_space *plain = fl_space_lora(reg, NSITES, sites, r, 8, false);
    const fl_space *rs = fl_space_lora(reg, NSITES, sites, r, 8, true);
    const fl_space *one = fl_space_lora(reg, NSITES, sites, r, -1, true);

    (void)state;
    for (int j = 0; j < NSITES; j++) {
        assert_true(plain->scale[j] == 8.0 / r[j]);
        assert_true(rs->scale[j] == 8.0 / sqrt(r[j]));
        assert_true(one->scale[j] == 1.0);
    }
    fl_spaces_destroy(&reg);
}

static void test_dense_space(void **state)
{
    const char *const name[3] = {"embed", "pos", "normf"};
    const int rows[3] = {4, 0, 1}, cols[3] = {3, 3, 3};
    fl_spaces *reg = fl_spaces_create();
    const fl_space *s = fl_space_dense(reg, 3, name, rows, cols);
    fl_adapter *ad = fl_adapter_create(s), *copy = fl_adapter_create(s);
    double norm2 = 0;

    (void)state;
    assert_int_equal(s->nslots, 2);
    assert_int_equal(s->rmax, 0);
    assert_int_equal(s->n, 15);
    assert_string_equal(s->slot[1].name, "normf");
    assert_ptr_equal(fl_at(ad, 2, FL_DENSE).x, ad->v + 12);
    assert_null(fl_at(ad, 1, FL_DENSE).x);
    assert_null(fl_at(ad, 0, FL_A).x);
    fill(ad, 1);
    fl_fit(copy, ad);
    assert_memory_equal(copy->v, ad->v, 15 * sizeof(fl_real));
    for (size_t i = 0; i < 12; i++) {
        norm2 += (double)ad->v[i] * (double)ad->v[i];
    }
    assert_true(fabs(fl_dot(ad, copy, 0, FL_FLAT) - norm2) < 1e-12);
    fl_adapter_destroy(&copy);
    fl_adapter_destroy(&ad);
    fl_spaces_destroy(&reg);
}

static void test_fit_nests(void **state)
{
    const int small_r[NSITES] = {2, 3, 1}, big_r[NSITES] = {4, 0, 5};
    fl_spaces *reg = fl_spaces_create();
    fl_adapter *small = fl_adapter_create(fl_space_lora(reg, NSITES, sites, small_r, 8, false));
    fl_adapter *big = fl_adapter_create(fl_space_lora(reg, NSITES, sites, big_r, 8, false));
    fl_adapter *back = fl_adapter_create(small->space);

    (void)state;
    fill(small, 1);
    fill(big, 2); /* must be overwritten, zeros included */
    fl_fit(big, small);
    for (int j = 0; j < NSITES; j += 2) {
        fl_mat a = fl_at(big, j, FL_A), b = fl_at(big, j, FL_B);
        fl_mat a2 = fl_at(small, j, FL_A), b2 = fl_at(small, j, FL_B);

        for (int l = 0; l < big_r[j]; l++) {
            for (int k = 0; k < a.cols; k++) {
                fl_real want = l < small_r[j] ? a2.x[l * a.cols + k] : 0;
                assert_true(a.x[l * a.cols + k] == want);
            }
            for (int i = 0; i < b.rows; i++) {
                fl_real want = l < small_r[j] ? b2.x[i * small_r[j] + l] : 0;
                assert_true(b.x[i * big_r[j] + l] == want);
            }
        }
    }
    fill(back, 3);
    fl_fit(back, big); /* back to the small ranks: site 1, absent in between, is zero */
    for (int j = 0; j < NSITES; j++) {
        for (int f = FL_A; f <= FL_B; f++) {
            fl_mat x = fl_at(back, j, (fl_factor)f), y = fl_at(small, j, (fl_factor)f);

            for (int i = 0; i < x.rows * x.cols; i++) {
                assert_true(x.x[i] == (j == 1 ? 0 : y.x[i]));
            }
        }
    }
    fl_adapter_destroy(&back);
    fl_adapter_destroy(&big);
    fl_adapter_destroy(&small);
    fl_spaces_destroy(&reg);
}

static void test_fit_product_keeps_the_update(void **state)
{
    const int r[NSITES] = {2, 3, 1}, grown[NSITES] = {5, 3, 4};
    fl_spaces *reg = fl_spaces_create();
    fl_adapter *x = fl_adapter_create(fl_space_lora(reg, NSITES, sites, r, 8, false));
    fl_adapter *y = fl_adapter_create(fl_space_lora(reg, NSITES, sites, grown, 6, true));
    double before[64], after[64];

    (void)state;
    fill(x, 4);
    fl_fit_product(y, x);
    for (int j = 0; j < NSITES; j++) {
        dense_update(x, j, before);
        dense_update(y, j, after);
        for (int i = 0; i < sites[j].m * sites[j].n; i++) {
            assert_true(fabs(before[i] - after[i]) < 1e-6 * (1 + fabs(before[i])));
        }
    }
    fl_adapter_destroy(&y);
    fl_adapter_destroy(&x);
    fl_spaces_destroy(&reg);
}

static void test_inner_products_against_dense(void **state)
{
    const int r[NSITES] = {2, 0, 3}, r2[NSITES] = {4, 2, 1};
    fl_spaces *reg = fl_spaces_create();
    fl_adapter *x = fl_adapter_create(fl_space_lora(reg, NSITES, sites, r, 8, false));
    fl_adapter *y = fl_adapter_create(fl_space_lora(reg, NSITES, sites, r2, 5, true));
    double dx[64], dy[64];

    (void)state;
    fill(x, 5);
    fill(y, 6);
    for (int j = 0; j < NSITES; j++) {
        double want = 0, size = 0, flat = 0, got = fl_dot(x, y, j, FL_PRODUCT);

        dense_update(x, j, dx);
        dense_update(y, j, dy);
        for (int i = 0; i < sites[j].m * sites[j].n; i++) {
            want += dx[i] * dy[i];
            size += fabs(dx[i] * dy[i]);
        }
        assert_true(fabs(got - want) <= 1e-13 * size);
        assert_true(got == fl_dot(x, y, j, FL_PRODUCT)); /* the same bits */
        for (int l = 0; l < FL_MIN(r[j], r2[j]); l++) {
            fl_mat a = fl_at(x, j, FL_A), b = fl_at(x, j, FL_B);
            fl_mat a2 = fl_at(y, j, FL_A), b2 = fl_at(y, j, FL_B);

            for (int k = 0; k < a.cols; k++) {
                flat += (double)a.x[l * a.cols + k] * (double)a2.x[l * a.cols + k];
            }
            for (int i = 0; i < b.rows; i++) {
                flat += (double)b.x[i * b.cols + l] * (double)b2.x[i * b2.cols + l];
            }
        }
        assert_true(fabs(fl_dot(x, y, j, FL_FLAT) - flat) < 1e-12);
    }
    fl_adapter_destroy(&y);
    fl_adapter_destroy(&x);
    fl_spaces_destroy(&reg);
}

static void test_product_against_dense(void **state)
{
    const int r[NSITES] = {2, 0, 3};
    fl_spaces *reg = fl_spaces_create();
    fl_adapter *ad = fl_adapter_create(fl_space_lora(reg, NSITES, sites, r, 8, false));
    double want[64], got[64];

    (void)state;
    fill(ad, 7);
    for (int j = 0; j < NSITES; j++) {
        int n = sites[j].m * sites[j].n;

        dense_update(ad, j, want);
        for (int i = 0; i < n; i++) {
            got[i] = NAN; /* be = 0 must not read */
        }
        fl_product(ad, j, 1, 0, got);
        for (int i = 0; i < n; i++) {
            assert_true(fabs(got[i] - want[i]) < 1e-13 * (1 + fabs(want[i]) * 10));
        }
        fl_product(ad, j, -0.25, 0.5, got);
        for (int i = 0; i < n; i++) {
            assert_true(fabs(got[i] - 0.25 * want[i]) < 1e-12);
        }
    }
    fl_adapter_destroy(&ad);
    fl_spaces_destroy(&reg);
}

static void test_axpy_norm_finite(void **state)
{
    const int r[NSITES] = {2, 1, 3};
    fl_spaces *reg = fl_spaces_create();
    fl_adapter *x = fl_adapter_create(fl_space_lora(reg, NSITES, sites, r, 8, false));
    fl_adapter *y = fl_adapter_create(x->space);
    double sum = 0;
    int slot = -1;

    (void)state;
    fill(x, 8);
    fl_fit(y, x);
    fl_adapter_axpy(y, -2, x);
    for (size_t i = 0; i < x->space->n; i++) {
        assert_true(y->v[i] == -x->v[i]);
        sum += (double)x->v[i] * (double)x->v[i];
    }
    assert_true(fabs(fl_adapter_norm(y) - sqrt(sum)) < 1e-13 * sqrt(sum));
    assert_true(fl_adapter_finite(y, &slot));
    assert_int_equal(slot, -1);
    fl_at(y, 2, FL_A).x[3] = (fl_real)NAN;
    assert_false(fl_adapter_finite(y, &slot));
    assert_int_equal(slot, 4);
    fl_at(y, 0, FL_B).x[13] = (fl_real)INFINITY;
    assert_false(fl_adapter_finite(y, &slot));
    assert_int_equal(slot, 1);
    assert_false(fl_adapter_finite(y, NULL));
    fl_adapter_destroy(&y);
    fl_adapter_destroy(&x);
    fl_spaces_destroy(&reg);
}

static void test_hash_sees_every_value(void **state)
{
    const int r[NSITES] = {2, 1, 3}, none[NSITES] = {0, 0, 0};
    fl_spaces *reg = fl_spaces_create();
    fl_adapter *x = fl_adapter_create(fl_space_lora(reg, NSITES, sites, r, 8, false));
    fl_adapter *y = fl_adapter_create(fl_space_lora(reg, NSITES, sites, r, 9, false));
    fl_adapter *empty = fl_adapter_create(fl_space_lora(reg, NSITES, sites, none, 8, false));
    uint64_t h;

    (void)state;
    fill(x, 9);
    fill(y, 9);
    h = fl_adapter_hash(x, 1);
    assert_true(h == fl_adapter_hash(x, 1));
    assert_true(h != fl_adapter_hash(x, 2));
    assert_true(h != fl_adapter_hash(y, 1)); /* the same numbers with another scale */
    assert_true(fl_adapter_hash(empty, 1) != fl_adapter_hash(empty, 2));
    for (size_t i = 0; i < x->space->n; i++) {
        fl_real old = x->v[i];

        x->v[i] = -old;
        assert_true(h != fl_adapter_hash(x, 1));
        x->v[i] = old;
    }
    assert_true(h == fl_adapter_hash(x, 1));
    fl_adapter_destroy(&empty);
    fl_adapter_destroy(&y);
    fl_adapter_destroy(&x);
    fl_spaces_destroy(&reg);
}

static void test_spread(void **state)
{
    const int r[NSITES] = {2, 1, 3}, owner[NSITES] = {1, 0, 1};
    fl_spaces *reg = fl_spaces_create();
    fl_adapter *whole = fl_adapter_create(fl_space_lora(reg, NSITES, sites, r, 8, false));
    fl_adapter *part[2];
    double sum = 0;

    (void)state;
    fill(whole, 10);
    for (int rank = 0; rank < 2; rank++) {
        part[rank] = fl_adapter_create_spread(whole->space, owner, rank);
        fl_fit(part[rank], whole);
        for (int j = 0; j < NSITES; j++) {
            fl_mat x = fl_at(part[rank], j, FL_B), y = fl_at(whole, j, FL_B);

            assert_int_equal(x.rows, y.rows);
            if (owner[j] == rank) {
                size_t bytes = (size_t)(x.rows * x.cols) * sizeof(fl_real);
                assert_memory_equal(x.x, y.x, bytes);
            } else {
                assert_null(x.x);
            }
        }
        fl_adapter_axpy(part[rank], 0, part[rank]);
        sum += fl_adapter_norm(part[rank]) * fl_adapter_norm(part[rank]);
    }
    assert_true(fabs(sqrt(sum) - fl_adapter_norm(whole)) < 1e-13 * sqrt(sum));
    assert_true(
        fl_adapter_hash(whole, 3) == fl_adapter_hash(part[0], 3) + fl_adapter_hash(part[1], 3));
    fl_adapter_destroy(&part[1]);
    fl_adapter_destroy(&part[0]);
    fl_adapter_destroy(&whole);
    fl_spaces_destroy(&reg);
}

static void test_init_is_nested(void **state)
{
    const int small_r[NSITES] = {2, 1, 3}, big_r[NSITES] = {6, 4, 8};
    fl_spaces *reg = fl_spaces_create();
    fl_adapter *small = fl_adapter_create(fl_space_lora(reg, NSITES, sites, small_r, 8, false));
    fl_adapter *big = fl_adapter_create(fl_space_lora(reg, NSITES, sites, big_r, 8, true));
    fl_adapter *cut = fl_adapter_create(small->space);

    (void)state;
    for (int kind = FL_INIT_KAIMING; kind <= FL_INIT_GAUSSIAN; kind++) {
        fill(small, 1);
        for (int j = 0; j < NSITES; j++) {
            fl_init_site(7, 3, kind, 0.1, j, small);
            fl_init_site(7, 3, kind, 0.1, j, big);
        }
        fl_fit(cut, big);
        assert_memory_equal(cut->v, small->v, small->space->n * sizeof(fl_real));
        for (int j = 0; j < NSITES; j++) {
            fl_mat b = fl_at(big, j, FL_B);

            for (int i = 0; i < b.rows * b.cols; i++) {
                assert_true(b.x[i] == 0);
            }
        }
    }
    /* another seed, stream or site gives other numbers */
    fl_init_site(8, 3, FL_INIT_GAUSSIAN, 0.1, 0, small);
    assert_true(fl_at(small, 0, FL_A).x[0] != fl_at(big, 0, FL_A).x[0]);
    fl_init_site(7, 4, FL_INIT_GAUSSIAN, 0.1, 0, small);
    assert_true(fl_at(small, 0, FL_A).x[0] != fl_at(big, 0, FL_A).x[0]);
    assert_true(fl_at(big, 0, FL_A).x[0] != fl_at(big, 1, FL_A).x[0]);
    fl_adapter_destroy(&cut);
    fl_adapter_destroy(&big);
    fl_adapter_destroy(&small);
    fl_spaces_destroy(&reg);
}

static void test_init_distribution(void **state)
{
    const fl_site wide[1] = {{"0.up", 0, 2, 400}};
    const int r[1] = {100};
    fl_spaces *reg = fl_spaces_create();
    fl_adapter *ad = fl_adapter_create(fl_space_lora(reg, 1, wide, r, 8, false));
    fl_mat a = fl_at(ad, 0, FL_A);
    const int n = 40000;

    (void)state;
    for (int kind = FL_INIT_KAIMING; kind <= FL_INIT_GAUSSIAN; kind++) {
        double sum = 0, square = 0, worst = 0, want;

        fl_init_site(1, 0, kind, 0, 0, ad);
        for (int i = 0; i < n; i++) {
            sum += (double)a.x[i];
            square += (double)a.x[i] * (double)a.x[i];
            worst = fmax(worst, fabs((double)a.x[i]));
        }
        /* uniform +-1/20 has variance 1/1200; PEFT's gaussian has std 1/r */
        want = kind == FL_INIT_KAIMING ? 1.0 / 1200 : 1e-4;
        assert_true(fabs(square / n - want) < 0.03 * want);
        assert_true(fabs(sum / n) < 4 * sqrt(want / n));
        assert_true(kind == FL_INIT_KAIMING ? worst <= 0.05 && worst > 0.0499 : worst > 0.03);
    }
    fl_adapter_destroy(&ad);
    fl_spaces_destroy(&reg);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_invalid_spaces_are_seen),
        cmocka_unit_test(test_interning),
        cmocka_unit_test(test_scales),
        cmocka_unit_test(test_dense_space),
        cmocka_unit_test(test_fit_nests),
        cmocka_unit_test(test_fit_product_keeps_the_update),
        cmocka_unit_test(test_inner_products_against_dense),
        cmocka_unit_test(test_product_against_dense),
        cmocka_unit_test(test_axpy_norm_finite),
        cmocka_unit_test(test_hash_sees_every_value),
        cmocka_unit_test(test_spread),
        cmocka_unit_test(test_init_is_nested),
        cmocka_unit_test(test_init_distribution),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
