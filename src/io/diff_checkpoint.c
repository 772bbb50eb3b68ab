/* diff_checkpoint.c - where two checkpoints differ. Wall times, library versions and the deck are
 * not state: columns of metrics that end in _s are skipped, deck and versions only noted. */
#include "inspect_internal.h"
#include <string.h>

static int find_array(const fl_snapshot *s, const char *name)
{
    for (int i = 0; i < s->narrays; i++) {
        if (strcmp(s->array[i].name, name) == 0) {
            return i;
        }
    }
    return -1;
}

/* Which columns are wall time: "NAME_s" or "NAME_s:UNIT". Owned, [*n]; NULL when rows do not
 * divide.
 */
static bool *wall_columns(const char *columns, size_t numbers_in_all, size_t *n)
{
    *n = 1;
    for (const char *c = columns; *c != 0; c++) {
        *n += *c == ',';
    }
    if (numbers_in_all % *n != 0) {
        return NULL;
    }
    bool *skip = fl_alloc("columns", *n, sizeof *skip);

    for (size_t i = 0; i < *n; i++) {
        size_t length = strcspn(columns, ","), name = strcspn(columns, ",:");

        skip[i] = name > 2 && columns[name - 2] == '_' && columns[name - 1] == 's';
        columns += length + (columns[length] == ',');
    }
    return skip;
}

static fl_err diff_array(diff_report *r, ck_file *a, ck_file *b, int i, int j)
{
    fl_array *x = &a->s.array[i], *y = &b->s.array[j];
    char how[200];
    bool *skip = NULL;

    if (x->type != y->type || x->n != y->n) {
        snprintf(how, sizeof how, "%zu of type %s against %zu of type %s", x->n,
            h5_type_name(x->type), y->n, h5_type_name(y->type));
        diff_note(r, x->name, how);
        return FL_OK;
    }
    fl_err err = ck_array(a, i);

    err = err != FL_OK ? err : ck_array(b, j);
    if (err == FL_OK) {
        diff_pair v = {x->x, y->x, x->type, x->n, 1, NULL};

        if (strcmp(x->name, "run/metrics") == 0) {
            v.skip = skip = wall_columns(a->s.columns, x->n, &v.ncolumns);
        }
        diff_compare(r, x->name, &v);
    }
    fl_free(skip);
    ck_array_drop(a, i);
    ck_array_drop(b, j);
    return err;
}

static fl_err diff_arrays(diff_report *r, ck_file *a, ck_file *b)
{
    for (int i = 0; i < a->s.narrays; i++) {
        int j = find_array(&b->s, a->s.array[i].name);

        if (j < 0) {
            diff_note(r, a->s.array[i].name, "only in the first file");
        } else {
            FL_TRY(diff_array(r, a, b, i, j));
        }
    }
    for (int j = 0; j < b->s.narrays; j++) {
        if (find_array(&a->s, b->s.array[j].name) < 0) {
            diff_note(r, b->s.array[j].name, "only in the second file");
        }
    }
    return FL_OK;
}

static fl_err read_blob(const ck_file *c, hid_t set, int64_t i, char **blob, size_t *n)
{
    *n = (size_t)(c->offset[i + 1] - c->offset[i]);
    *blob = fl_alloc("client state", *n, 1);
    return ck_read(c, "clients/state", set, H5T_NATIVE_UINT8, (size_t)c->offset[i], *n, *blob);
}

static fl_err diff_blob(
    diff_report *r, const ck_file *a, const ck_file *b, const hid_t set[2], int64_t i, int64_t j)
{
    char *x = NULL, *y = NULL, field[64], how[160];
    size_t nx = 0, ny = 0, at = 0;
    fl_err err = read_blob(a, set[0], i, &x, &nx);

    err = err != FL_OK ? err : read_blob(b, set[1], j, &y, &ny);
    snprintf(field, sizeof field, "client %lld", (long long)a->id[i]);
    if (err == FL_OK && nx != ny) {
        snprintf(how, sizeof how, "%zu bytes of state against %zu", nx, ny);
        diff_note(r, field, how);
    } else if (err == FL_OK && memcmp(x, y, nx) != 0) {
        while (x[at] == y[at]) {
            at++;
        }
        snprintf(how, sizeof how, "state differs, first at byte %zu of %zu", at, nx);
        diff_note(r, field, how);
    }
    fl_free(x);
    fl_free(y);
    return err;
}

static fl_err diff_tables(diff_report *r, const ck_file *a, const ck_file *b, const hid_t set[2])
{
    char field[64];

    for (int64_t i = 0, j = 0; i < a->nids || j < b->nids;) {
        bool only_a = j == b->nids || (i < a->nids && a->id[i] < b->id[j]);
        bool only_b = !only_a && (i == a->nids || b->id[j] < a->id[i]);

        if (only_a || only_b) {
            snprintf(field, sizeof field, "client %lld", (long long)(only_a ? a->id[i] : b->id[j]));
            diff_note(r, field,
                only_a ? "has state only in the first file" : "has state only in the second file");
        } else {
            FL_TRY(diff_blob(r, a, b, set, i, j));
        }
        i += !only_b;
        j += !only_a;
    }
    return FL_OK;
}

static fl_err diff_clients(diff_report *r, ck_file *a, ck_file *b)
{
    hid_t set[2] = {-1, -1};
    uint64_t xxh3;

    FL_TRY(ck_clients(a));
    FL_TRY(ck_clients(b));
    fl_err err = ck_open_set(a, "clients/state", &set[0], &xxh3);

    err = err != FL_OK ? err : ck_open_set(b, "clients/state", &set[1], &xxh3);
    err = err != FL_OK ? err : diff_tables(r, a, b, set);
    for (int i = 0; i < 2; i++) {
        if (set[i] >= 0) {
            H5Dclose(set[i]);
        }
    }
    return err;
}

/* Base by chunks; only the first chunk that differs is described in full. */
static fl_err diff_base(diff_report *r, const ck_file *a, const ck_file *b)
{
    hid_t set[2] = {-1, -1};
    uint64_t xxh3;
    size_t each = h5_type_bytes(a->base_type), before = r->rows.n;
    char field[64];

    if (a->s.nbase != b->s.nbase || (a->s.nbase > 0 && a->base_type != b->base_type)) {
        diff_note_number(
            r, "base, numbers saved dense", (long long)a->s.nbase, (long long)b->s.nbase);
        return FL_OK;
    }
    if (a->s.nbase == 0) {
        return FL_OK;
    }
    fl_err err = ck_open_set(a, "base", &set[0], &xxh3);

    err = err != FL_OK ? err : ck_open_set(b, "base", &set[1], &xxh3);
    char *x = fl_alloc("base chunk", CK_CHUNK, each), *y = fl_alloc("base chunk", CK_CHUNK, each);

    for (size_t c = 0; c < ck_nchunks(a->s.nbase) && err == FL_OK && r->rows.n == before; c++) {
        size_t at = c * CK_CHUNK, n = FL_MIN((size_t)CK_CHUNK, a->s.nbase - at);
        diff_pair v = {x, y, a->base_type, n, 1, NULL};

        err = ck_read(a, "base", set[0], h5_type_native(a->base_type), at, n, x);
        err =
            err != FL_OK ? err : ck_read(b, "base", set[1], h5_type_native(a->base_type), at, n, y);
        snprintf(field, sizeof field, "base, numbers from %zu on", at);
        if (err == FL_OK) {
            diff_compare(r, field, &v);
        }
    }
    fl_free(x);
    fl_free(y);
    for (int i = 0; i < 2; i++) {
        if (set[i] >= 0) {
            H5Dclose(set[i]);
        }
    }
    return err;
}

static fl_err diff_open_checkpoints(diff_report *r, ck_file *a, ck_file *b)
{
    char how[64];

    if (a->s.round != b->s.round) {
        diff_note_number(r, "round", a->s.round, b->s.round);
    }
    if (a->s.nclients != b->s.nclients) {
        diff_note_number(r, "nclients", a->s.nclients, b->s.nclients);
    }
    if (a->s.base_revision != b->s.base_revision) {
        diff_note_number(r, "base_revision", a->s.base_revision, b->s.base_revision);
    }
    if (strcmp(a->s.columns, b->s.columns) != 0) {
        diff_note(r, "metrics_columns", "other names");
    }
    FL_TRY(diff_arrays(r, a, b));
    FL_TRY(diff_clients(r, a, b));
    FL_TRY(diff_base(r, a, b));
    if (a->s.state != b->s.state) {
        snprintf(how, sizeof how, "%016llx against %016llx", (unsigned long long)a->s.state,
            (unsigned long long)b->s.state);
        diff_note(r, "state", how);
    }
    if (strcmp(a->s.deck, b->s.deck) != 0) {
        fl_text_add(&r->rows, "note: the decks differ\n");
    }
    if (strcmp(a->s.versions, b->s.versions) != 0) {
        fl_text_add(&r->rows, "note: the versions of program or libraries differ\n");
    }
    return FL_OK;
}

fl_err diff_checkpoints(diff_report *r, const char *a, const char *b)
{
    ck_file x, y;

    FL_TRY(ck_open(a, &x));
    fl_err err = ck_open(b, &y);

    if (err == FL_OK) {
        err = diff_open_checkpoints(r, &x, &y);
        ck_close(&y);
    }
    ck_close(&x);
    return err;
}
