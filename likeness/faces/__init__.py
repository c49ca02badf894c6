"""Finding, measuring and comparing faces; one provider a module, loaded only when used."""
