"""`python -m facelab.faces check FOLDER`: can this set of faces be used?"""

import sys

from facelab.faces.sets import main

sys.exit(main())
