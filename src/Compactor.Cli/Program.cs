using Compactor.Cli;

return CommandLine.Run(args);
