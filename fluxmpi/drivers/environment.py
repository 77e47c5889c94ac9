"""The environment of child processes, without the variables of the outer MPI and its launcher.

A program that inherits ``PMI_FD`` or ``PMIX_*`` and uses MPI itself connects to the outer launcher as one of its ranks,
and hangs or dies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_OUTER = re.compile(
    r"OMPI_|PMIX_|PRTE_|PMI_|PMI2_|PMI_FD|HYDRA_|HYDI_|MPI_LOCAL|MPIR_|MPICH_|MPIEXEC_|OPAL_|ORTE_|MPI4PY_RC_"
    r"|SLURM_(STEP|PROCID|LOCALID|NODEID|TASK|SRUN|LAUNCH|UMASK|GTIDS|DISTRIBUTION|PMI|PMIX|MPI_TYPE|CPU_BIND|MEM_BIND)"
)
_OURS = re.compile(r"FLUXMPI_(START|LAUNCHED)")
_SETTINGS = re.compile(r"(OMPI_MCA_|OMPI_ALLOW_|PRTE_MCA_|MPIR_CVAR_|PMIX_MCA_)")
"""Variables that users set to tune an MPI are kept."""


def scrub(environ: Mapping[str, str]) -> dict[str, str]:
    """Return ``environ`` without the variables of this process's own launch."""
    return {
        name: value
        for name, value in environ.items()
        if not (_OUTER.match(name) and not _SETTINGS.match(name)) and not _OURS.match(name)
    }
