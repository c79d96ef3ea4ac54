"""`python -m facelab.faces check FOLDER`: is a set of faces fit to be used?"""

import sys

from facelab.faces.sets import main

sys.exit(main())
