from .measure import bench as bench
