"""From the records to what tables, figures and exports are made of. Nothing here asks the model."""
