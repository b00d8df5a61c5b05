// Where in the kernel's source a return address lies, for messages.
#pragma once
#include <string>

namespace simt {

// " at file:line", or " at module+offset" where no line is known.
std::string source_position(const void* code);

}
