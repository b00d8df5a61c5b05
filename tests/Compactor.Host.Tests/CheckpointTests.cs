using System.Security.Cryptography;
using Compactor.Native;
using Compactor.Native.Cpu;
using Compactor.Native.Io;
using Xunit;

namespace Compactor.Host.Tests;

/// <summary>Reading checkpoints, and what is wrong with them.</summary>
public sealed class CheckpointTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("compactor-host-").FullName;

    [Fact]
    public void Shards_hold_the_same_model_as_one_file()
    {
        int[] tokens = [1, 5, 9, 33, 7];
        float[] sharded = Logits(TestFiles.Data("llama3"), tokens);
        Merge("llama3", (_, tensor) => tensor);
        Assert.Equal(sharded, Logits(_folder, tokens));
    }

    [Fact]
    public void A_fingerprint_is_of_the_weight_files_in_the_order_of_their_names()
    {
        string Expected(string folder) => Convert.ToHexStringLower(SHA256.HashData(
            [.. Directory.GetFiles(folder, "model*.safetensors").Order(StringComparer.Ordinal).SelectMany(File.ReadAllBytes)]))[..16];
        foreach (string folder in (string[])[TestFiles.Data("llama3"), TestFiles.Needle])
        {
            using var model = LlamaModel.Load(folder + Path.DirectorySeparatorChar);
            Assert.Equal((Path.GetFileName(folder), Expected(folder)), (model.Name, model.Fingerprint));
        }
        Assert.True(Directory.GetFiles(TestFiles.Data("llama3"), "model*.safetensors").Length > 1);
    }

    [Fact]
    public void A_tensor_that_is_missing_is_named()
    {
        Merge("qwen2", (name, tensor) => name == "model.layers.1.self_attn.k_proj.bias" ? null : tensor);
        Fails("model.layers.1.self_attn.k_proj.bias", "missing");
    }

    [Fact]
    public void A_tensor_of_another_shape_is_named_with_both_shapes()
    {
        Merge("llama2", (name, tensor) => name == "model.layers.0.mlp.up_proj.weight" ? tensor with { Shape = [48, 88] } : tensor);
        Fails("model.layers.0.mlp.up_proj.weight", "[48, 88]", "[88, 48]");
    }

    [Fact]
    public void A_tensor_of_a_type_that_is_not_read_is_named()
    {
        Merge("llama2", (name, tensor) => name == "model.norm.weight" ? tensor with { Type = SafetensorsType.I16 } : tensor);
        Fails("model.norm.weight", "I16");
    }

    [Theory]
    [InlineData("\"model_type\": \"llama\"", "\"model_type\": \"mistral\"", "mistral")]
    [InlineData("\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\"", "gelu")]
    [InlineData("\"rope_type\": \"llama3\"", "\"rope_type\": \"yarn\"", "yarn")]
    [InlineData("\"factor\": 8.0", "\"other\": 8.0", "factor is missing")]
    [InlineData("\"hidden_size\": 64", "\"hidden_size\": \"64\"", "hidden_size is \"64\"")]
    [InlineData("\"hidden_size\": 64,", "", "hidden_size is missing")]
    [InlineData("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", "num_key_value_heads 3")]
    [InlineData("\"vocab_size\": 90", "\"vocab_size\": 90, \"quantization_config\": {}", "quantization_config")]
    [InlineData("\"vocab_size\": 90", "\"vocab_size\": 90, \"use_sliding_window\": true", "use_sliding_window")]
    [InlineData("\"vocab_size\": 90", "\"vocab_size\": 90, \"head_dim\": 24", "24")]
    [InlineData("\"vocab_size\": 90", "\"vocab_size\": 90, \"partial_rotary_factor\": 0.5", "partial_rotary_factor")]
    [InlineData("\"rope_type\": \"llama3\"", "\"rope_type\": \"llama3\", \"partial_rotary_factor\": 0.5", "partial_rotary_factor")]
    [InlineData("{", "[", "cannot be read")]
    public void A_configuration_that_is_wrong_or_not_supported_is_named(string part, string other, string mention)
    {
        string config = File.ReadAllText(TestFiles.Data("llama3/config.json"));
        Assert.Contains(part, config, StringComparison.Ordinal);
        Merge("llama3", (_, tensor) => tensor);
        File.WriteAllText(Path.Combine(_folder, "config.json"), config.Replace(part, other, StringComparison.Ordinal));
        Fails(mention);
    }

    [Fact]
    public void A_missing_folder_and_missing_weights_are_named()
    {
        Assert.Contains("nowhere", Assert.Throws<CompactorException>(() => LlamaModel.Load(Path.Combine(_folder, "nowhere"))).Message, StringComparison.Ordinal);
        File.Copy(TestFiles.Data("llama3/config.json"), Path.Combine(_folder, "config.json"));
        Fails("model.safetensors");
    }

    [Theory]
    [InlineData("\"model-00002-of-00003.safetensors\"", "\"../llama2/model.safetensors\"", "beside the index")]
    [InlineData("\"model-00002-of-00003.safetensors\"", "\"model-00004-of-00003.safetensors\"", "model-00004-of-00003.safetensors")]
    [InlineData("\"model-00002-of-00003.safetensors\"", "\"model-00001-of-00003.safetensors\"", "does not hold it")]
    [InlineData("\"weight_map\"", "\"weights\"", "weight_map is missing")]
    public void An_index_that_is_wrong_is_named(string part, string other, string mention)
    {
        foreach (string file in Directory.GetFiles(TestFiles.Data("llama3")))
            File.Copy(file, Path.Combine(_folder, Path.GetFileName(file)));
        string index = Path.Combine(_folder, "model.safetensors.index.json");
        File.WriteAllText(index, File.ReadAllText(index).Replace(part, other, StringComparison.Ordinal));
        Fails(mention);
    }

    [Fact]
    public void End_tokens_are_read_one_or_several()
    {
        Assert.Equal([2, 3], ModelConfig.Load(TestFiles.Data("llama3/config.json")).EndTokens);
        Assert.Equal([2], ModelConfig.Load(TestFiles.Data("llama2/config.json")).EndTokens);
        Assert.Empty(ModelConfig.Load(Path.Combine(TestFiles.Needle, "config.json")).EndTokens);
    }

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    private void Fails(params string[] mentions)
    {
        string message = Assert.Throws<CompactorException>(() => LlamaModel.Load(_folder)).Message;
        foreach (string mention in mentions)
            Assert.Contains(mention, message, StringComparison.Ordinal);
    }

    /// <summary>Copies a checkpoint into one file, with tensors changed or left out.</summary>
    private void Merge(string name, Func<string, TensorCopy, TensorCopy?> change)
    {
        string source = TestFiles.Data(name);
        File.Copy(Path.Combine(source, "config.json"), Path.Combine(_folder, "config.json"), overwrite: true);
        var writer = new SafetensorsWriter();
        foreach (string path in Directory.GetFiles(source, "model*.safetensors"))
        {
            using var file = SafetensorsFile.Open(path);
            foreach (var (tensorName, tensor) in file.Tensors)
                if (change(tensorName, new TensorCopy(tensor.Type, [.. tensor.Shape], tensor.Bytes().ToArray())) is { } copy)
                    writer.Add(tensorName, copy.Type, copy.Shape, copy.Bytes);
        }
        writer.Save(Path.Combine(_folder, "model.safetensors"));
    }

    private sealed record TensorCopy(SafetensorsType Type, long[] Shape, byte[] Bytes);

    private static float[] Logits(string folder, int[] tokens)
    {
        using var model = LlamaModel.Load(folder);
        using var backend = new CpuBackend(1);
        using var engine = new Engine(model, backend, cacheTokens: 64, blockSize: 16);
        using var prefill = engine.Prefill(tokens);
        return prefill.Logits();
    }
}
