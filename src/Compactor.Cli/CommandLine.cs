using System.CommandLine;
using System.CommandLine.Invocation;
using Compactor.Cli.Commands;
using Compactor.Native;

namespace Compactor.Cli;

/// <summary>The tool's commands and exit codes.</summary>
internal static class CommandLine
{
    public const int Success = 0, Failure = 1, Usage = 2, Interrupted = 130;

    private const string SeeHelp = "See 'compactor --help' or 'compactor <command> --help'.";

    public static int Run(string[] args)
    {
        var verbose = new Option<bool>("--verbose") { Description = "On failure, print the stack trace.", Recursive = true };
        bool shown = args.Contains(verbose.Name), json = args.Contains("--json");
        try
        {
            return Invoke(verbose, args);
        }
        catch (UsageException exception)
        {
            Fail(Usage, exception.Message, exception);
            Console.Error.WriteLine(SeeHelp);
            return Usage;
        }
        catch (OperationCanceledException exception)
        {
            return Fail(Interrupted, "interrupted; nothing was written.", exception);
        }
        catch (Exception exception) when (exception is CompactorException or IOException or UnauthorizedAccessException)
        {
            return Fail(Failure, exception.Message, exception);
        }
        catch (Exception exception)
        {
            return Fail(Failure, $"internal error: {exception.GetType().Name}: {exception.Message}{(shown ? "" : " Run again with --verbose and report what it prints.")}", exception);
        }

        int Fail(int exitCode, string message, Exception exception)
        {
            message = message.ReplaceLineEndings(" ");
            Console.Error.WriteLine($"compactor: {message}");
            if (shown)
                Console.Error.WriteLine(exception);
            if (json)
                WriteJson(exitCode, message);
            return exitCode;
        }
    }

    private static void WriteJson(int exitCode, string error)
    {
        try
        {
            JsonDocumentWriter.Write(json =>
            {
                json.WriteString("error", error);
                json.WriteNumber("exit_code", exitCode);
            });
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            // Standard output may be what failed; standard error has told already.
        }
    }

    private static int Invoke(Option<bool> verbose, string[] args)
    {
        var root = new RootCommand("Compresses KV caches of language models: keeps the tokens that matter, frees the rest.")
        {
            verbose,
            CompressCommand.Create(),
            GenerateCommand.Create(),
            InspectCommand.Create(),
            DoctorCommand.Create(),
            DemoCommand.Create(),
            EvalCommand.Create(),
            CalibrateCommand.Create(),
            KernelsCommand.Create(),
        };
        var parsed = root.Parse(args);
        if (parsed.Action is not ParseErrorAction error)
            return parsed.Invoke(new InvocationConfiguration { EnableDefaultExceptionHandler = false });
        error.ShowHelp = false;
        using var text = new StringWriter();
        parsed.Invoke(new InvocationConfiguration { Output = text, Error = text });
        throw new UsageException(string.Join(' ', text.ToString().Split((char[])['\n', '\r', '\t'], StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries)));
    }
}
