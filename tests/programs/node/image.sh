#!/bin/sh
# image.sh ARCHIVE NAME ENTRYPOINT FOLDER: writes FOLDER as an image of one layer, in the OCI
# layout, for `ctr images import`.
set -eu
archive=$1 name=$2 entrypoint=$3 folder=$4
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
blobs=$work/blobs/sha256
mkdir -p "$blobs"

# Moves a file to its place by digest, and sets `digest` and `size`.
blob() {
    digest=$(sha256sum < "$1" | cut -d ' ' -f 1)
    size=$(stat -c %s "$1")
    mv "$1" "$blobs/$digest"
}

tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$folder" -cf "$work/part" .
blob "$work/part"
layer=$digest layer_size=$size
cat > "$work/part" <<END
{"architecture": "amd64", "os": "linux",
 "config": {"Entrypoint": ["$entrypoint"], "Env": ["PATH=/bin"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$layer"]}}
END
blob "$work/part"
cat > "$work/part" <<END
{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
 "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": "sha256:$digest", "size": $size},
 "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar",
             "digest": "sha256:$layer", "size": $layer_size}]}
END
blob "$work/part"
cat > "$work/index.json" <<END
{"schemaVersion": 2,
 "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": "sha256:$digest", "size": $size,
                "platform": {"os": "linux", "architecture": "amd64"},
                "annotations": {"io.containerd.image.name": "$name",
                                "org.opencontainers.image.ref.name": "$name"}}]}
END
echo '{"imageLayoutVersion": "1.0.0"}' > "$work/oci-layout"
tar -C "$work" -cf "$archive" oci-layout index.json blobs
