"""Whatever detects, behind one interface: detrkit's models, other toolkits' detectors, and files of detections."""
