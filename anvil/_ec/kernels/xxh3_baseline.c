/* XXH3 with the instructions every processor of the architecture has. */
#define ANVIL_XXH3_NAME(what) anvil_xxh3_baseline_##what
#include "xxh3_body.h"

const anvil_xxh3_kernel anvil_xxh3_baseline = ANVIL_XXH3_KERNEL;
