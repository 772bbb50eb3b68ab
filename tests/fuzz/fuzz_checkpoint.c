/* fuzz_checkpoint.c - libFuzzer: checkpoints, as files, to peek, verify and inspect; nothing may
 * crash, hang or stay allocated. First byte even: the other bytes are the file. Odd: they are a
 * list of decisions by which a file that HDF5 finds in order is made, sealed rightly, and full of
 * lies about kinds, sizes, ranges and hashes, so that what lies behind the seal is reached. */
#include "../../src/io/h5.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void fuzz_need(bool holds)
{
    if (!holds) {
        abort();
    }
}

static char path[100];

static void remove_file(void)
{
    unlink(path);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    snprintf(path, sizeof path, "/dev/shm/fuzz-checkpoint-%d.h5", (int)getpid());
    atexit(remove_file);
    return 0;
}

typedef struct decisions {
    const uint8_t *x;
    size_t n, at;
} decisions;

static int decide(decisions *d, int choices)
{
    return d->at < d->n ? d->x[d->at++] % choices : 0;
}

/* mostly the truth; 0 is what an exhausted input decides */
static bool lie(decisions *d)
{
    return decide(d, 8) == 7;
}

static int64_t odd_number(decisions *d)
{
    static const int64_t x[] = {
        -1, 0, 1, 2, 7, INT32_MAX, (int64_t)INT32_MAX + 1, INT64_MAX, INT64_MIN, 1000};

    return x[decide(d, FL_COUNT(x))];
}

static void make_attribute(decisions *d, hid_t root, const char *name, int64_t truth)
{
    switch (lie(d) ? decide(d, 4) : -1) {
    case 0:
        break; /* absent */
    case 1:
        h5_put_text(root, name, "12");
        break;
    case 2:
        h5_put_u64(root, name, UINT64_MAX);
        break;
    case 3:
        h5_put_int(root, name, odd_number(d));
        break;
    default:
        h5_put_int(root, name, truth);
    }
}

static void make_header(decisions *d, hid_t file)
{
    hid_t root = H5Gopen2(file, "/", H5P_DEFAULT);
    static const char *const texts[] = {"deck", "versions", "metrics_columns"};

    make_attribute(d, root, "round", 3);
    make_attribute(d, root, "rounds", 5);
    make_attribute(d, root, "base_revision", 0);
    make_attribute(d, root, "nclients", 9);
    make_attribute(d, root, "complete", 1);
    h5_put_text(root, "state", lie(d) ? "0123" : "0123456789abcdef");
    H5Gclose(root);
    for (size_t i = 0; i < FL_COUNT(texts); i++) {
        if (!lie(d)) {
            h5_string(file, texts[i], i == 2 ? "a,b_s" : "text", "what");
        } else if (lie(d)) {
            H5Dclose(h5_dataset(file, texts[i], H5T_IEEE_F32LE, 3, "", "", ""));
        }
    }
}

/* A data set that should be x [n] of the type; or of another shape, kind, layout, hash. */
static void make_set(decisions *d, hid_t file, const char *name, fl_array_type type, size_t n,
    const void *x, uint64_t sum)
{
    hid_t kind = h5_type_file(type), set = -1;
    hsize_t dims[2] = {n, 1}, chunk[2] = {4, 1};

    if (lie(d)) {
        kind = h5_type_file((fl_array_type)decide(d, 4));
    }
    if (lie(d)) {
        n = (size_t)decide(d, 40);
        dims[0] = n;
    }
    if (lie(d)) { /* two dimensions, chunks, or a length that no file holds */
        int how = decide(d, 4);
        hid_t dcpl = H5Pcreate(H5P_DATASET_CREATE);

        dims[0] = how == 3 ? (hsize_t)1 << 61 : n;
        hid_t space =
            how == 2 ? H5Screate(H5S_NULL) : H5Screate_simple(how == 0 ? 2 : 1, dims, NULL);

        if (how == 1) {
            H5Pset_chunk(dcpl, 1, chunk);
        }
        set = H5Dcreate2(file, name, kind, space, H5P_DEFAULT, dcpl, H5P_DEFAULT);
        H5Sclose(space);
        H5Pclose(dcpl);
    } else {
        set = h5_dataset(file, name, kind, n, "what", "unit", "axes");
        if (set >= 0 && n > 0 && n <= 64) {
            h5_write(set, h5_type_native(type), H5P_DEFAULT, 0, n, x);
        }
    }
    if (set >= 0) {
        if (!lie(d)) {
            h5_put_u64(set, "xxh3", sum + lie(d));
        }
        H5Dclose(set);
    }
}

static void make_file(decisions *d)
{
    int64_t id[64] = {1, 4, 7}, offset[64] = {0, 3, 4, 10};
    char state[64] = "0123456789";
    double array[64] = {1, 2, 3, 4, 5, 6};
    uint64_t sum = fl_hash(state, 3, 1) + fl_hash(state + 3, 1, 4) + fl_hash(state + 4, 6, 7);

    for (int i = 0; i < 4; i++) {
        id[i] = lie(d) ? odd_number(d) : id[i];
        offset[i] = lie(d) ? odd_number(d) : offset[i];
    }
    hid_t file = h5_create(path);

    if (file < 0) {
        return;
    }
    make_header(d, file);
    make_set(d, file, "server/global", FL_F64, 6, array, fl_hash(array, 48, 0));
    make_set(d, file, "run/metrics", FL_F64, 4, array, fl_hash(array, 32, 0));
    make_set(d, file, "clients/id", FL_I64, 3, id, fl_hash(id, 24, 0));
    make_set(d, file, "clients/offset", FL_I64, 4, offset, fl_hash(offset, 32, 0));
    make_set(d, file, "clients/state", FL_U8, 10, state, sum);
    if (decide(d, 2)) {
        float base[64] = {1, 2, 3};

        make_set(d, file, "base", FL_F32, 3, base, fl_hash(base, 12, 0));
    }
    H5Fclose(file);
    fl_err err = h5_seal(path, 0, NULL);

    fuzz_need(err == FL_OK);
}

static void put_file(const uint8_t *data, size_t n)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    fuzz_need(fd >= 0 && write(fd, data, n) == (ssize_t)n);
    close(fd);
}

static void check(fl_err err)
{
    fuzz_need((err == FL_OK) == (*fl_error_text() == '\0'));
    fl_error_clear();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    size_t before = fl_memory_now();
    fl_snapshot s;
    fl_text t = {0};
    decisions d = {data, n, 1};

    h5_quiet();
    unlink(path);
    if (n == 0 || data[0] % 2 == 0) {
        put_file(data + (n > 0), n > 0 ? n - 1 : 0);
    } else {
        make_file(&d);
    }
    fl_error_clear();
    fl_err peek = fl_checkpoint_peek(path, &s);

    check(peek);
    fl_snapshot_free(&s);
    /* in a child process for files without seal: what a fuzzer finds there is HDF5's */
    if (peek == FL_OK || n % 16 == 0) {
        fl_err verify = fl_verify(path, &t);

        check(verify);
        fuzz_need(peek == FL_OK || verify != FL_OK || strstr(t.s, "samples"));
        fuzz_need(n != 1 || data[0] % 2 == 0 || verify == FL_OK); /* no lies: whole */
        check(fl_inspect(path, &t));
        if (peek == FL_OK && verify == FL_OK) {
            check(fl_diff(path, path, &t));
        }
    }
    fl_text_free(&t);
    fuzz_need(fl_memory_now() == before);
    return 0;
}
