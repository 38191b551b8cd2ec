//! Linux VFIO and iommufd ioctls over owned file descriptors.

