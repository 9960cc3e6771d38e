# What the package builds beside the library (chat formats, command line tools) takes longer than the library itself.
set(LLAMA_BUILD_COMMON OFF)
set(LLAVA_BUILD OFF)
