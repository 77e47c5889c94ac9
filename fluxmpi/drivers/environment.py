"""The environment of children: the outer MPI's and launcher's variables must not reach them.

A program that inherits ``PMI_FD`` or ``PMIX_*`` and then uses MPI takes itself for one of the outer ranks, and hangs or dies.
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
"""What a user sets to tune an MPI is kept."""


def scrub(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` without what belongs to this process's own launch."""
    return {
        name: value
        for name, value in environ.items()
        if not (_OUTER.match(name) and not _SETTINGS.match(name)) and not _OURS.match(name)
    }
