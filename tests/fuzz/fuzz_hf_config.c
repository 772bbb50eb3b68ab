/* fuzz_hf_config.c - libFuzzer: any bytes as config.json; a model that is accepted must hang
 * together. */
#include "fedlora/io.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    size_t before = fl_memory_now(), nweights = 0;
    fl_model m;
    fl_err err = fl_hf_config_parse((const char *)data, n, "fuzz", &m);

    if ((err == FL_OK) != (*fl_error_text() == '\0')) {
        abort();
    }
    if (err == FL_OK) {
        for (int i = 0; i < m.ntensors; i++) {
            nweights += (size_t)m.tensor[i].rows * (size_t)m.tensor[i].cols;
        }
        if (nweights != m.nweights || fl_model_bytes(&m) < nweights * sizeof(fl_real) ||
            m.nheads % m.nkv != 0 || m.nsites != m.nlayers * (m.gated ? 7 : 6)) {
            abort();
        }
    }
    fl_model_free(&m);
    fl_error_clear();
    if (fl_memory_now() != before) {
        abort();
    }
    return 0;
}
