"""The published methods, a module or a folder each. To add one, add its `Method` to `METHODS`."""

from styleengine.method import Method
from styleengine.methods.h_space import H_SPACE
from styleengine.methods.inst import INST
from styleengine.methods.qs_attn import QS_ATTN
from styleengine.methods.stytr2 import STYTR2
from styleengine.methods.zstar import ZSTAR
from styleengine.methods.zstar_video import ZSTAR_VIDEO

METHODS: dict[str, Method] = {method.name: method for method in (ZSTAR, ZSTAR_VIDEO, QS_ATTN, H_SPACE, INST, STYTR2)}
