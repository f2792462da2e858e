/* Preloaded into a host's bindfs: every read and write of a file ends with EIO as long as the file EIO_WHILE names is there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

static int broken(void)
{
    const char *mark = getenv("EIO_WHILE");
    return mark != NULL && access(mark, F_OK) == 0;
}

#define FAILS(result, name, parameters, arguments)              \
    result name parameters                                      \
    {                                                           \
        static result(*real) parameters;                        \
        if (broken()) {                                         \
            errno = EIO;                                        \
            return -1;                                          \
        }                                                       \
        if (real == NULL)                                       \
            real = (result(*) parameters)dlsym(RTLD_NEXT, #name); \
        return real arguments;                                  \
    }

FAILS(ssize_t, pread, (int file, void *to, size_t size, off_t at), (file, to, size, at))
FAILS(ssize_t, pread64, (int file, void *to, size_t size, off64_t at), (file, to, size, at))
FAILS(ssize_t, pwrite, (int file, const void *from, size_t size, off_t at), (file, from, size, at))
FAILS(ssize_t, pwrite64, (int file, const void *from, size_t size, off64_t at), (file, from, size, at))
FAILS(int, fsync, (int file), (file))
FAILS(int, fdatasync, (int file), (file))
