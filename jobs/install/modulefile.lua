-- fedlora @VERSION@ for Lmod; written by make install, which puts prefix and version in.
--   module use @PREFIX@/share/fedlora/modulefiles; module load fedlora
-- A copy in the site's own folder of modules works too.
local root = [[@PREFIX@]]

help([[fedlora @VERSION@: federated low-rank adaptation of transformers under MPI
  man fedlora; fedlora --help; decks: @PREFIX@/share/fedlora/inputs; job scripts: @PREFIX@/share/fedlora/jobs]])
whatis("Name: fedlora")
whatis("Version: @VERSION@")
whatis("Description: federated low-rank adaptation of transformers under MPI")
conflict("fedlora")

-- the modules it was built with (Open MPI, parallel HDF5, ScaLAPACK, OpenBLAS), as the site calls them:
-- depends_on("openmpi", "hdf5", "scalapack", "openblas")

prepend_path("PATH", pathJoin(root, "bin"))
-- without MANPATH, man finds the page beside the bin folder by itself; a MANPATH of one entry would hide all others
if os.getenv("MANPATH") then
    prepend_path("MANPATH", pathJoin(root, "share/man"))
end
setenv("FEDLORA_SHARE", pathJoin(root, "share/fedlora"))
