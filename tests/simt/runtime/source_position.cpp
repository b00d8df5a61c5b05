#include "source_position.hpp"
#include <cstdio>
#include <dlfcn.h>
#include <link.h>
#include <map>
#include <mutex>

namespace simt {

static std::string look_up(const void* code)
{
    Dl_info info;
    link_map* map = nullptr;
    if (dladdr1(code, &info, (void**)&map, RTLD_DL_LINKMAP) == 0 || info.dli_fname == nullptr) return "";
    unsigned long offset = (unsigned long)code - 1 - map->l_addr;   // inside the call, not after it
    char text[512];
    std::snprintf(text, sizeof text, " at %s+0x%lx", info.dli_fname, offset);
    std::string position = text;

    std::string quoted = "'";
    for (const char* c = info.dli_fname; *c != 0; c++) quoted += *c == '\'' ? std::string("'\\''") : std::string(1, *c);
    quoted += "'";
    std::snprintf(text, sizeof text, " 0x%lx 2>/dev/null", offset);
    FILE* lines = popen(("addr2line -i -e " + quoted + text).c_str(), "r");
    if (lines == nullptr) return position;
    // Innermost inlined function first: the first one that is not a wrapper is the kernel's line.
    bool found = false;
    while (std::fgets(text, sizeof text, lines) != nullptr) {
        std::string line = text;
        line.erase(line.find_first_of(" \n"));   // a discriminator may follow
        size_t name = line.find_last_of('/');
        std::string file = name == std::string::npos ? line : line.substr(name + 1);
        if (found || file.rfind("simt_ptx", 0) == 0 || file.rfind("simt.hpp", 0) == 0 || file.rfind("?", 0) == 0) continue;
        position = " at " + file;
        found = true;
    }
    pclose(lines);
    return position;
}

// A process a look-up is slow, and tests meet the same faults again and again.
std::string source_position(const void* code)
{
    static std::mutex guard;
    static std::map<const void*, std::string> known;
    std::lock_guard<std::mutex> lock(guard);
    auto at = known.find(code);
    if (at == known.end()) at = known.emplace(code, look_up(code)).first;
    return at->second;
}

}
