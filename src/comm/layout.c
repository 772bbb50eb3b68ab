/* layout.c - who owns which items: contiguous blocks as an offset array first[size + 1], equal on
 * all ranks. */
#include "fedlora/comm.h"
#include <math.h>

void fl_layout(int n, const double *cost, int size, int *first)
{
    double total = 0.0;

    FL_REQUIRE(n >= 0 && size > 0);
    for (int i = 0; i < n; i++) {
        FL_REQUIRE(cost[i] >= 0.0 && isfinite(cost[i]));
        total += cost[i];
    }
    /* items without any cost are dealt by number */
    bool even = !(total > 0.0) || !isfinite(total);
    double sum = 0.0;
    int i = 0;

    total = even ? n : total;
    first[0] = 0;
    for (int b = 0; b + 1 < size; b++) {
        double goal = total * ((double)(b + 1) / size);
        double next = 0.0;
        while (i < n && (next = sum + (even ? 1.0 : cost[i])) <= goal) {
            sum = next;
            i++;
        }
        if (i < n && next - goal < goal - sum) {
            sum = next;
            i++;
        }
        first[b + 1] = i;
    }
    first[size] = n;
}

int fl_layout_owner(int size, const int *first, int item)
{
    int low = 0, high = size; /* first[low] <= item < first[high] */

    FL_REQUIRE(item >= 0 && item < first[size]);
    while (high - low > 1) {
        int middle = low + (high - low) / 2;
        if (first[middle] <= item) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

int fl_home_first(int nclients, int size, int rank)
{
    FL_REQUIRE(nclients >= 0 && size > 0 && rank >= 0 && rank <= size);
    return (int)((int64_t)rank * nclients / size);
}

int fl_home(int nclients, int size, int id)
{
    FL_REQUIRE(id >= 0 && id < nclients && size > 0);
    /* largest rank with floor(rank nclients / size) <= id, that is rank nclients < (id + 1) size */
    return (int)((((int64_t)id + 1) * size - 1) / nclients);
}
