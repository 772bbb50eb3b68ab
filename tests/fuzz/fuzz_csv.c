/* fuzz_csv.c - libFuzzer: comma separated values to records, with and without client key and label.
 */
#include "fuzz_records.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    int options = n > 0 ? data[0] >> 4 & 7 : 0;
    fl_deck_data how = {
        .field = "t", .key = options & 1 ? "k" : "", .label = options & 2 ? "y" : ""};

    return fuzz_read(fl_read_csv, data, n, &how);
}
