# SPDX-License-Identifier: Apache-2.0
"""fedlora for Spack: from the tree itself (spack dev-build), or from the tar file of make dist in the working directory."""

import os

from spack.package import *

try:  # Spack 1.0 moved the build systems out of spack.package
    from spack_repo.builtin.build_systems.makefile import MakefilePackage
except ImportError:
    pass


class Fedlora(MakefilePackage):
    """Federated low-rank adaptation (FedLoRA) of transformers, simulated under MPI with the same bits on any number of ranks."""

    url = "file://{0}/fedlora-0.1.0.tar.gz".format(os.getcwd())
    manual_download = True

    license("Apache-2.0")

    # no checksum: the tar file is made from the tree of which this file is a part (spack install --no-checksum)
    version("0.1.0")

    depends_on("c", type="build")
    depends_on("gmake", type="build")
    depends_on("pkgconfig", type="build")
    # signals and exit codes were tried with Open MPI
    depends_on("openmpi")
    depends_on("hdf5+mpi")
    depends_on("netlib-scalapack")
    # cblas.h and openblas_set_num_threads are used
    depends_on("openblas")
    depends_on("libyaml")
    depends_on("jansson")
    depends_on("xxhash")
    depends_on("xz")
    depends_on("random123", type="build")
    depends_on("cmocka", type="test")

    @property
    def build_targets(self):
        # Spack's compiler wrapper adds -march for the target, so the Makefile must not
        return ["CC={0}".format(self.spec["mpi"].mpicc), "CFLAGS=-O3 -g", "all"]

    @property
    def install_targets(self):
        return self.build_targets[:-1] + ["PREFIX={0}".format(self.prefix), "install"]
