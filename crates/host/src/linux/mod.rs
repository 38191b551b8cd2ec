//! The real machine: sysfs, /proc, VFIO and iommufd.
