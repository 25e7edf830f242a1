"""Config -> data, modules and programs: the only reader of configs."""

from snapvideo_jax.build.checks import (
    check as check,
)
from snapvideo_jax.build.config import (
    Config as Config,
)
from snapvideo_jax.build.data import (
    Source as Source,
)
from snapvideo_jax.build.data import (
    Text as Text,
)
from snapvideo_jax.build.data import (
    as_batch as as_batch,
)
from snapvideo_jax.build.data import (
    source as source,
)
from snapvideo_jax.build.data import (
    text as text,
)
from snapvideo_jax.build.data import (
    vocabulary_path as vocabulary_path,
)
from snapvideo_jax.build.data import (
    world as world,
)
from snapvideo_jax.build.model import (
    DTYPES as DTYPES,
)
from snapvideo_jax.build.model import (
    denoiser as denoiser,
)
from snapvideo_jax.build.model import (
    network as network,
)
from snapvideo_jax.build.model import (
    padded_video as padded_video,
)
from snapvideo_jax.build.programs import (
    Evaluation as Evaluation,
)
from snapvideo_jax.build.programs import (
    Program as Program,
)
from snapvideo_jax.build.programs import (
    abstract_batch as abstract_batch,
)
from snapvideo_jax.build.programs import (
    abstract_params as abstract_params,
)
from snapvideo_jax.build.programs import (
    batch_shardings as batch_shardings,
)
from snapvideo_jax.build.programs import (
    blank_batch as blank_batch,
)
from snapvideo_jax.build.programs import (
    evaluation as evaluation,
)
from snapvideo_jax.build.programs import (
    mesh as mesh,
)
from snapvideo_jax.build.programs import (
    once as once,
)
from snapvideo_jax.build.programs import (
    program as program,
)
from snapvideo_jax.build.programs import (
    video_sharding as video_sharding,
)
from snapvideo_jax.build.recipe import (
    objective as objective,
)
from snapvideo_jax.build.recipe import (
    optimizer as optimizer,
)
from snapvideo_jax.build.recipe import (
    schedule as schedule,
)
