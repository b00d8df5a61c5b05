using System.CommandLine;
using System.CommandLine.Invocation;
using Compactor.Cli.Commands;
using Compactor.Native;

namespace Compactor.Cli;

/// <summary>The tool's commands and exit codes.</summary>
internal static class CommandLine
{
    public const int Success = 0, Failure = 1, Usage = 2;

    private const string SeeHelp = "See 'compactor --help' or 'compactor <command> --help'.";

    public static int Run(string[] args)
    {
        var verbose = new Option<bool>("--verbose") { Description = "On failure, print the stack trace.", Recursive = true };
        bool shown = args.Contains(verbose.Name);
        try
        {
            return Invoke(verbose, args);
        }
        catch (UsageException exception)
        {
            Fail(exception.Message, exception, shown);
            Console.Error.WriteLine(SeeHelp);
            return Usage;
        }
        catch (Exception exception) when (exception is CompactorException or IOException or UnauthorizedAccessException)
        {
            return Fail(exception.Message, exception, shown);
        }
        catch (Exception exception)
        {
            return Fail($"internal error: {exception.GetType().Name}: {exception.Message}{(shown ? "" : " Run again with --verbose and report what it prints.")}", exception, shown);
        }
    }

    private static int Invoke(Option<bool> verbose, string[] args)
    {
        var root = new RootCommand("Compresses KV caches of language models: keeps the tokens that matter, frees the rest.")
        {
            verbose,
            CompressCommand.Create(),
            InspectCommand.Create(),
            DoctorCommand.Create(),
            DemoCommand.Create(),
        };
        var parsed = root.Parse(args);
        if (parsed.Action is not ParseErrorAction error)
            return parsed.Invoke(new InvocationConfiguration { EnableDefaultExceptionHandler = false });
        error.ShowHelp = false;
        parsed.Invoke(new InvocationConfiguration { Output = Console.Error, Error = Console.Error });
        Console.Error.WriteLine(SeeHelp);
        return Usage;
    }

    private static int Fail(string message, Exception exception, bool verbose)
    {
        Console.Error.WriteLine($"compactor: {message.ReplaceLineEndings(" ")}");
        if (verbose)
            Console.Error.WriteLine(exception);
        return Failure;
    }
}
