/* xz.c - bytes of a file, unpacked by liblzma when its name ends in .xz. Local. */
#include "data_internal.h"
#include <errno.h>
#include <lzma.h>
#include <string.h>
#include <strings.h>

/* a dictionary of 64 MiB (xz -9) fits four times; the limit stops a header that asks for gigabytes
 */
static const uint64_t xz_memory = 256u << 20;
/* a few kB can unpack to terabytes; text of this size belongs into an HDF5 data set */
static const size_t xz_output = (size_t)8 << 30;
enum { XZ_PIECE = 1 << 16 };

bool fl_data_ends_in(const char *name, size_t n, const char *tail)
{
    size_t m = strlen(tail);

    return n > m && strncasecmp(name + n - m, tail, m) == 0;
}

static const char *xz_reason(lzma_ret ret)
{
    switch (ret) {
    case LZMA_BUF_ERROR:
        return "it ends too early (truncated)";
    case LZMA_MEMLIMIT_ERROR:
        return "it wants more than 256 MiB to unpack; pack it with xz -6";
    case LZMA_FORMAT_ERROR:
        return "it is not an .xz file";
    case LZMA_OPTIONS_ERROR:
        return "it uses options that this liblzma does not know";
    case LZMA_DATA_ERROR:
        return "it is damaged";
    case LZMA_MEM_ERROR:
        return "there is no memory left";
    default:
        return "liblzma refuses it";
    }
}

fl_err fl_data_unxz(const void *x, size_t n, const char *name, fl_text *out)
{
    lzma_stream s = LZMA_STREAM_INIT;
    lzma_ret ret = lzma_stream_decoder(&s, xz_memory, LZMA_CONCATENATED);
    uint8_t *piece = fl_alloc("xz output", XZ_PIECE, 1);

    s.next_in = x;
    s.avail_in = n;
    while (ret == LZMA_OK && out->n <= xz_output) {
        s.next_out = piece;
        s.avail_out = XZ_PIECE;
        ret = lzma_code(&s, LZMA_FINISH);
        fl_text_bytes(out, piece, XZ_PIECE - s.avail_out);
    }
    lzma_end(&s);
    fl_free(piece);
    if (ret == LZMA_STREAM_END) {
        return FL_OK;
    }
    fl_text_free(out);
    if (ret == LZMA_OK) {
        return fl_fail(
            FL_EFILE, "%s: unpacks to more than 8 GiB; make an HDF5 data set of it", name);
    }
    return fl_fail(FL_EFILE, "%s: cannot be unpacked: %s", name, xz_reason(ret));
}

static fl_err read_plain(const char *path, fl_text *out)
{
    FILE *f = fopen(path, "rb");
    char *piece;
    size_t n;

    if (!f) {
        return fl_fail(FL_EFILE, "%s: cannot be opened: %s (data.source)", path, strerror(errno));
    }
    piece = fl_alloc("file", XZ_PIECE, 1);
    errno = 0;
    while ((n = fread(piece, 1, XZ_PIECE, f)) > 0) {
        fl_text_bytes(out, piece, n);
    }
    fl_free(piece);
    if (ferror(f)) {
        fl_err err =
            fl_fail(FL_EFILE, "%s: cannot be read: %s (data.source)", path, strerror(errno));

        fclose(f);
        fl_text_free(out);
        return err;
    }
    fclose(f);
    return FL_OK;
}

fl_err fl_data_load_file(const char *path, fl_text *out)
{
    fl_text packed = {0};
    fl_err err;

    memset(out, 0, sizeof *out);
    if (!fl_data_ends_in(path, strlen(path), ".xz")) {
        return read_plain(path, out);
    }
    FL_TRY(read_plain(path, &packed));
    err = fl_data_unxz(packed.s, packed.n, path, out);
    fl_text_free(&packed);
    return err;
}
