"""ImageHash, which continuum imports and Spack has no package of."""

from spack.package import depends_on, license, version
from spack_repo.builtin.build_systems.python import PythonPackage


class PyImagehash(PythonPackage):
    """Perceptual hashes of images."""

    homepage = "https://github.com/JohannesBuchner/imagehash"
    pypi = "ImageHash/ImageHash-4.3.2.tar.gz"

    license("BSD-2-Clause")

    version("4.3.2", sha256="e54a79805afb82a34acde4746a16540503a9636fd1ffb31d8e099b29bbbf8156")

    depends_on("py-setuptools", type="build")
    depends_on("pil", type="run")
    depends_on("py-numpy", type="run")
    depends_on("py-pywavelets", type="run")
    depends_on("py-scipy", type="run")
