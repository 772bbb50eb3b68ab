#%Module1.0
# fedlora @VERSION@ for Environment Modules; written by make install, which puts prefix and version in.
#   module use @PREFIX@/share/fedlora/modulefiles; module load fedlora
# A copy in the site's own folder of modules works too.
set root {@PREFIX@}

proc ModulesHelp { } {
    global root
    puts stderr "fedlora @VERSION@: federated low-rank adaptation of transformers under MPI"
    puts stderr "  man fedlora; fedlora --help; decks: $root/share/fedlora/inputs; job scripts: $root/share/fedlora/jobs"
}
module-whatis "fedlora @VERSION@: federated low-rank adaptation of transformers under MPI"
conflict fedlora

# the modules it was built with (Open MPI, parallel HDF5, ScaLAPACK, OpenBLAS), as the site calls them:
# module load openmpi hdf5 scalapack openblas

prepend-path PATH $root/bin
# without MANPATH, man finds the page beside the bin folder by itself; a MANPATH of one entry would hide all others
if {[info exists env(MANPATH)]} {
    prepend-path MANPATH $root/share/man
}
setenv FEDLORA_SHARE $root/share/fedlora
