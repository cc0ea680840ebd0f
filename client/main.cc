#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>

#include "base/thread.h"
#include "client/commands.h"

namespace {

int TerminalWidth() {
  winsize size = {};
  if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

}  // namespace

int main(int argc, char** argv) {
  // One thread takes Ctrl-C; all others, made later, inherit the block. A second Ctrl-C kills.
  // SIGUSR1 is ours: it lets the thread end.
  sigset_t signals;
  sigemptyset(&signals);
  for (int number : {SIGINT, SIGTERM, SIGUSR1}) sigaddset(&signals, number);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);

  switchyard::Interrupt interrupt;
  switchyard::Thread taker("interrupts", [&](const switchyard::StopToken& stop) {
    int number = 0;
    while (sigwait(&signals, &number) == 0 && !stop.StopRequested()) {
      if (number == SIGUSR1) continue;
      if (interrupt.triggered()) ::_exit(128 + number);
      interrupt.Trigger();
    }
  });
  switchyard::Terminal terminal{std::cout,
                                std::cerr,
                                interrupt,
                                ::isatty(STDOUT_FILENO) == 1,
                                TerminalWidth,
                                [](const std::string& name) -> std::optional<std::string> {
                                  const char* value = std::getenv(name.c_str());
                                  if (value == nullptr) return std::nullopt;
                                  return value;
                                },
                                [] { return absl::Now(); }};
  const int code = switchyard::RunCli(std::vector<std::string>(argv + 1, argv + argc), terminal);
  taker.RequestStop();
  ::kill(::getpid(), SIGUSR1);
  return code;
}
