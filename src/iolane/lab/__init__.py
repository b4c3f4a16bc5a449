"""The lab: a whole emulated host with an IOMMU, in which passthrough is exercised for real."""
