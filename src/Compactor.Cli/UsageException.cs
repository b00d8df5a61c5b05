namespace Compactor.Cli;

/// <summary>Options that each can be parsed and together, or in their values, make no sense.</summary>
internal sealed class UsageException(string message, Exception? innerException = null) : Exception(message, innerException);
