/* hdf5_name.c - the HDF5 library in use, for used.yaml and --version. */
#include "fedlora/io.h"

#include <hdf5.h>

const char *fl_hdf5_name(void)
{
    static char name[48];
    unsigned major, minor, release;

    H5get_libversion(&major, &minor, &release);
    snprintf(name, sizeof name, "HDF5 %u.%u.%u", major, minor, release);
    return name;
}
