"""Tables in the formats of others: COCO, the published CSV, DICOM segmentations, GeoJSON."""
