/* fuzz_text.c - libFuzzer: plain text to records, all kinds of records, with and without headings.
 */
#include "fuzz_records.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    int options = n > 0 ? data[0] >> 4 & 7 : 0;
    fl_deck_data how = {.records = options % 3,
        .separator = "--",
        .key = options >= 4 ? "heading" : "",
        .label = ""};

    return fuzz_read(fl_read_text, data, n, &how);
}
