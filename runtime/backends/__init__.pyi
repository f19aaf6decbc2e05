from .choose import BACKENDS as BACKENDS
from .choose import MAX_BATCH as MAX_BATCH
from .choose import GraphRunner as GraphRunner
from .choose import Options as Options
from .choose import Running as Running
from .choose import open_graphs as open_graphs
