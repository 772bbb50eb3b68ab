# site.sh - what your machine needs, read by every scheduler script: change it once.
# shellcheck shell=bash
# module load openmpi hdf5 scalapack openblas
#
# nodes of different CPU types: one kernel that all of them have, with a build by  make ARCH=x86-64-v3
# export OPENBLAS_CORETYPE=Haswell
