/* dataset.c - writes a small HDF5 data set for the shell tests: 60 byte sequences of 20 tokens
 * each, split and keyed by client. dataset good|changed|offsets|token|split FILE changed: one token
 * differs; offsets: one of them goes down; token: one beyond the vocabulary of 256; split: a value
 * that does not exist. Built by make_dataset in tests/system.sh. */
#include <hdf5.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { NRECORDS = 60, LENGTH = 20, NTOKENS = NRECORDS * LENGTH };

static int put(hid_t file, const char *name, hid_t type, hsize_t n, const void *x)
{
    hid_t space = H5Screate_simple(1, &n, NULL);
    hid_t set = H5Dcreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    int bad = set < 0 || H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, x) < 0;

    H5Dclose(set);
    H5Sclose(space);
    return bad;
}

int main(int argc, char **argv)
{
    uint32_t token[NTOKENS];
    uint64_t offset[NRECORDS + 1];
    int32_t client[NRECORDS];
    uint8_t split[NRECORDS];
    hid_t file;
    int bad;

    if (argc != 3 || (file = H5Fcreate(argv[2], H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT)) < 0) {
        fprintf(stderr, "usage: dataset good|changed|offsets|token|split FILE\n");
        return 2;
    }
    for (int i = 0; i < NTOKENS; i++) {
        token[i] = 'a' + (uint32_t)(i * i / 7 + i / LENGTH) % 26;
    }
    for (int i = 0; i <= NRECORDS; i++) {
        offset[i] = (uint64_t)i * LENGTH;
    }
    for (int i = 0; i < NRECORDS; i++) {
        client[i] = i % 6;
        split[i] = i % 10 == 8 ? 1 : i % 10 == 9 ? 2 : 0;
    }
    if (strcmp(argv[1], "changed") == 0) {
        token[500] = 'A';
    } else if (strcmp(argv[1], "offsets") == 0) {
        offset[30] = 100;
    } else if (strcmp(argv[1], "token") == 0) {
        token[700] = 256;
    } else if (strcmp(argv[1], "split") == 0) {
        split[7] = 3;
    }
    bad = put(file, "tokens", H5T_NATIVE_UINT32, NTOKENS, token) ||
          put(file, "offsets", H5T_NATIVE_UINT64, NRECORDS + 1, offset) ||
          put(file, "client", H5T_NATIVE_INT32, NRECORDS, client) ||
          put(file, "split", H5T_NATIVE_UINT8, NRECORDS, split);
    return H5Fclose(file) < 0 || bad;
}
