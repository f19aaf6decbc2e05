# Finds onnxruntime_c_api.h, which the Python packages of ONNX Runtime do not hold. In this order:
# 1. -DONNXRUNTIME_INCLUDE_DIR=DIR; 2. the system; 3. Debian 13's libonnxruntime-dev, unpacked into
# the build folder (nothing is installed); 4. the release archive. Only headers are used: the
# library that is built asks the running ONNX Runtime for its functions.

set(ONNXRUNTIME_INCLUDE_DIR "" CACHE PATH "Folder of onnxruntime_c_api.h, 1.20 or newer")
option(TFANET_FETCH_ONNXRUNTIME_HEADERS "Fetch the headers of ONNX Runtime if they are missing" ON)
set(TFANET_ONNXRUNTIME_RELEASE 1.20.1 CACHE STRING "Release archive to take the headers from")

# Unpacks a package of headers of Debian 13 into `folder` with apt lists of our own, from the
# mirror and with the settings that apt has on this machine.
function(tfanet_headers_from_debian folder package_name)
  find_program(APT_GET apt-get)
  find_program(DPKG dpkg)
  file(GLOB keys /usr/share/keyrings/debian-archive-keyring.*)
  if(NOT APT_GET OR NOT DPKG OR NOT keys OR NOT EXISTS /etc/os-release)
    return()
  endif()
  file(STRINGS /etc/os-release codename REGEX "^VERSION_CODENAME=")
  string(REPLACE "VERSION_CODENAME=" "" codename "${codename}")
  execute_process(
    COMMAND ${APT_GET} indextargets --format "$(RELEASE) $(REPO_URI)"
    OUTPUT_VARIABLE targets ERROR_QUIET)
  if(NOT codename OR NOT targets MATCHES "(^|\n)${codename} ([^ \n]+)")
    return()
  endif()
  set(mirror "${CMAKE_MATCH_2}")
  list(GET keys 0 key)
  file(MAKE_DIRECTORY ${folder}/lists/partial ${folder}/cache/archives/partial)
  file(WRITE ${folder}/status "")
  file(WRITE ${folder}/sources.list "deb [signed-by=${key}] ${mirror} trixie main\n")
  set(apt ${APT_GET} -q -o Dir::Etc::SourceList=${folder}/sources.list
      -o Dir::Etc::SourceParts=/dev/null -o Dir::State=${folder}
      -o Dir::State::Lists=${folder}/lists -o Dir::State::status=${folder}/status
      -o Dir::Cache=${folder}/cache -o APT::Sandbox::User= -o Acquire::Languages=none
      -o Acquire::Retries=2)
  execute_process(
    COMMAND ${apt} update WORKING_DIRECTORY ${folder} TIMEOUT 180 OUTPUT_QUIET ERROR_QUIET)
  execute_process(
    COMMAND ${apt} download ${package_name}
    WORKING_DIRECTORY ${folder} TIMEOUT 120 OUTPUT_QUIET ERROR_QUIET)
  file(GLOB package ${folder}/${package_name}_*.deb)
  if(package)
    execute_process(COMMAND ${DPKG} -x ${package} ${folder} OUTPUT_QUIET ERROR_QUIET)
  endif()
  file(REMOVE_RECURSE ${folder}/lists ${folder}/cache)
endfunction()

function(tfanet_headers_from_release folder)
  set(version ${TFANET_ONNXRUNTIME_RELEASE})
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
    set(name onnxruntime-linux-aarch64-${version})
  else()
    set(name onnxruntime-linux-x64-${version})
  endif()
  set(archive ${folder}/${name}.tgz)
  file(DOWNLOAD
    https://github.com/microsoft/onnxruntime/releases/download/v${version}/${name}.tgz ${archive}
    TIMEOUT 300 INACTIVITY_TIMEOUT 15 TLS_VERIFY ON STATUS status)
  list(GET status 0 code)
  if(code EQUAL 0)
    execute_process(
      COMMAND ${CMAKE_COMMAND} -E tar xzf ${archive}
      WORKING_DIRECTORY ${folder} OUTPUT_QUIET ERROR_QUIET)
  endif()
  file(REMOVE ${archive})
endfunction()

# Sets `result` to the folder of onnxruntime_c_api.h, or to an empty string.
function(tfanet_find_onnxruntime_headers result)
  if(ONNXRUNTIME_INCLUDE_DIR)
    if(NOT EXISTS ${ONNXRUNTIME_INCLUDE_DIR}/onnxruntime_c_api.h)
      message(FATAL_ERROR "ONNXRUNTIME_INCLUDE_DIR=${ONNXRUNTIME_INCLUDE_DIR} holds no "
        "onnxruntime_c_api.h; give the folder that holds it")
    endif()
    set(${result} ${ONNXRUNTIME_INCLUDE_DIR} PARENT_SCOPE)
    return()
  endif()
  set(fetched ${CMAKE_CURRENT_BINARY_DIR}/headers)
  set(suffixes onnxruntime onnxruntime/core/session include)
  unset(TFANET_ORT_SYSTEM CACHE)
  find_path(TFANET_ORT_SYSTEM onnxruntime_c_api.h PATH_SUFFIXES ${suffixes})
  mark_as_advanced(TFANET_ORT_SYSTEM)
  set(found "")
  if(TFANET_ORT_SYSTEM)
    file(STRINGS ${TFANET_ORT_SYSTEM}/onnxruntime_c_api.h line REGEX "#define ORT_API_VERSION")
    if(line MATCHES "([0-9]+)" AND CMAKE_MATCH_1 GREATER_EQUAL 20)
      set(found ${TFANET_ORT_SYSTEM})
    endif()
  endif()
  if(NOT found AND TFANET_FETCH_ONNXRUNTIME_HEADERS)
    foreach(source IN ITEMS none debian release)
      if(source STREQUAL debian)
        tfanet_headers_from_debian(${fetched} libonnxruntime-dev)
      elseif(source STREQUAL release)
        tfanet_headers_from_release(${fetched})
      endif()
      file(GLOB_RECURSE header ${fetched}/*/onnxruntime_c_api.h)
      if(header)
        list(GET header 0 header)
        get_filename_component(found ${header} DIRECTORY)
        break()
      endif()
    endforeach()
  endif()
  set(${result} "${found}" PARENT_SCOPE)
endfunction()
