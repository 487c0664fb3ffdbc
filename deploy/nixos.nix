# NixOS module. In configuration.nix: imports = [ ./nixos.nix ]; services.quire = { enable = true; package = ...; };
{ config, lib, pkgs, ... }:
let
  cfg = config.services.quire;
  settings = (pkgs.formats.yaml { }).generate "quire.yaml" cfg.settings;
in
{
  options.services.quire = {
    enable = lib.mkEnableOption "quire, LLM inference and serving";
    package = lib.mkOption {
      type = lib.types.package;
      description = "A Python environment with quire in it.";
    };
    settings = lib.mkOption {
      type = lib.types.attrsOf (lib.types.attrsOf lib.types.anything);
      default = { };
      example = { model.model = "/srv/models/my-model"; server.port = 8000; };
      description = "Settings by section, as in quire's configuration file; `quire config` lists them.";
    };
    environmentFile = lib.mkOption {
      type = lib.types.nullOr lib.types.path;
      default = null;
      description = "File with secrets that do not belong in the store, such as QUIRE_SERVER__API_KEY=...";
    };
  };
  config = lib.mkIf cfg.enable {
    systemd.services.quire = {
      description = "quire, LLM inference and serving";
      wantedBy = [ "multi-user.target" ];
      after = [ "network-online.target" ];
      wants = [ "network-online.target" ];
      environment = {
        HOME = "/var/lib/quire";
        TRITON_CACHE_DIR = "/var/cache/quire/triton";
      };
      # Triton compiles its launcher with a C compiler, where there is one.
      path = [ pkgs.gcc ];
      serviceConfig = {
        Type = "notify";
        NotifyAccess = "main";
        ExecStart = "${cfg.package}/bin/quire serve --config ${settings}";
        EnvironmentFile = lib.mkIf (cfg.environmentFile != null) cfg.environmentFile;
        Restart = "on-failure";
        RestartSec = 2;
        TimeoutStartSec = "15min";
        TimeoutStopSec = 60;
        # The supervisor alone is told, so that it can drain.
        KillMode = "mixed";
        DynamicUser = true;
        StateDirectory = "quire";
        CacheDirectory = "quire";
        LimitNOFILE = 65536;
        NoNewPrivileges = true;
        ProtectSystem = "strict";
        ProtectHome = true;
        PrivateTmp = true;
      };
    };
  };
}
